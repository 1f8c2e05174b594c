"""Nothing that a client names leads to this machine or its network, in whatever way it is written."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from text2image.net.outbound import CheckedBackend, Refused, check_url, is_public

PRIVATE = [
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/128", "::1/128", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "2001:db8::/32"),
    )
]
V4 = [network for network in PRIVATE if network.version == 4]
LOOPBACK = (
    *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "localhost"),
    *("::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    *("169.254.169.254", "10.0.0.1", "::ffff:10.0.0.1", "fe80::1", "fd00::1"),
)


def within(networks: list[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(networks).flatmap(lambda network: st.ip_addresses(network=network))


@given(within(PRIVATE))
def test_no_private_address_is_public(address: Any) -> None:
    assert not is_public(address)


@given(within(V4))
def test_nor_is_ipv6_that_leads_to_one(address: IPv4Address) -> None:
    number = int(address)
    for prefix, shift in (("::ffff:0:0", 0), ("64:ff9b::", 0), ("2002::", 80), ("::", 0)):
        assert not is_public(IPv6Address(int(IPv6Address(prefix)) | number << shift))


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_others_are(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize("host", LOOPBACK)
async def test_what_stands_for_a_private_address_is_not_connected_to(host: str) -> None:
    with pytest.raises((Refused, httpcore.ConnectError)) as raised:
        await CheckedBackend().connect_tcp(host, 9, timeout=5)
    # What the operating system knows no address of was not connected to either.
    assert isinstance(raised.value, Refused) or "resolved" in str(raised.value)


async def test_a_name_with_one_private_address_of_several_is_refused_and_none_resolved_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    async def resolved(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("1.1.1.1", "10.0.0.1")
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
    with pytest.raises(Refused, match="T2I_WEBHOOK_ALLOW_PRIVATE"):
        await CheckedBackend().connect_tcp("rebound.example", 80, timeout=5)
    assert asked == ["rebound.example"]


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.com/", "https://", "example.com", "http://user:word@example.com/"),
        *("http://example.com/#part", "http://example.com:0/", "http://[::1", "file:///etc/passwd"),
        *("http://exa mple.com/", "http://example.com/\n", "http://bücher.example/", "x" * 3000),
        *("gopher://example.com", "http://example.com:99999/"),
    ],
)
def test_what_is_no_plain_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"is|must|holds"):
        check_url(url)


@given(st.text())
def test_any_text_is_a_url_or_refused(text: str) -> None:
    for url in (text, f"https://{text}"):
        try:
            check_url(url)
        except ValueError:
            continue
        assert url.startswith(("http://", "https://", "HTTP", "Http"))
