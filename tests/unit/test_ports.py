"""Addresses as grpc wants them."""

from __future__ import annotations

import pytest

from text2image.ports import address_of


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1:1"), ("localhost", "localhost:1"), ("::1", "[::1]:1")],
)
def test_the_colons_of_ipv6_are_told_from_the_ports(host: str, address: str) -> None:
    assert address_of(host, 1) == address
