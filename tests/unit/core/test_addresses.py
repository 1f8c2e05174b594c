"""The address that a request counts as cannot be chosen by whoever sends it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text2image.core.addresses import caller_address, parse_networks

PROXIES = parse_networks("10.0.0.0/8, 2001:db8::/32")


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "counts_as"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "198.51.100.7,10.0.0.2, 10.9.9.9", "198.51.100.7"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "198.51.100.7:4711", "198.51.100.7"),
        ("10.0.0.1", '"[2001:db9::7]:4711"', "2001:db9::/64"),
        ("2001:db8::1", "198.51.100.7", "198.51.100.7"),
        ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("10.0.0.1", "198.51.100.7, unknown", "10.0.0.1"),
        ("unix", "198.51.100.7", "unix"),
    ],
)
def test_the_last_address_that_no_trusted_proxy_has_counts(
    peer: str, forwarded_for: str, counts_as: str
) -> None:
    assert caller_address(peer, forwarded_for, PROXIES) == counts_as


@given(st.text(max_size=40), st.ip_addresses(v=4))
def test_what_a_client_makes_up_changes_nothing(made_up: str, client: object) -> None:
    """A proxy adds the address it sees to whatever the client sent."""
    honest = caller_address("10.0.0.1", f"{client}", PROXIES)
    if not honest.startswith("10."):
        assert caller_address("10.0.0.1", f"{made_up}, {client}", PROXIES) == honest
    assert caller_address("192.0.2.1", made_up, PROXIES) == "192.0.2.1"


def test_one_ipv6_customer_is_one_caller() -> None:
    addresses = ("2001:db9:0:1::1", "2001:db9:0:1:ffff::2", "2001:db9:0:1::3%eth0")
    assert {caller_address(address, "", ()) for address in addresses} == {"2001:db9:0:1::/64"}
    assert caller_address("::1", "", ()) == "::1"


@pytest.mark.parametrize("text", ["10.0.0.1/8", "proxy.example", "10.0.0.0/8,", "*"])
def test_what_is_no_network_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"write it as in 10\.0\.0\.0/8"):
        parse_networks(text)
