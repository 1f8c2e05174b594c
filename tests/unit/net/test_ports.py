"""Addresses as grpc wants them."""

from __future__ import annotations

import socket

import pytest

from text2image.core.addresses import address_of, reachable
from text2image.net.ports import bound_to


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1:1"), ("localhost", "localhost:1"), ("::1", "[::1]:1")],
)
def test_the_colons_of_ipv6_are_told_from_the_ports(host: str, address: str) -> None:
    assert address_of(host, 1) == address


@pytest.mark.parametrize(
    ("host", "client_host"),
    [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.1.2.3", "10.1.2.3"), ("a.example", "a.example")],
)
def test_what_listens_everywhere_is_reached_on_this_machine(host: str, client_host: str) -> None:
    assert reachable(host) == client_host


def test_a_socket_that_was_handed_down_tells_where_it_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(2):
            assert bound_to(server.fileno()) == server.getsockname()
