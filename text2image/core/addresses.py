"""Addresses: how people write them, where servers listen, and which one a client's request counts as."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# A lone IPv6 customer has at least this much to choose an address from.
_IPV6_PREFIX = 64
# An address that stands for all runners behind a name, which come and go.
FOLLOWED = "dns:///"
_SOCKET = "unix:"


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks and addresses as people write them, with commas between them; none of nothing.

    Raises:
        ValueError: the text is something else; the message says what it may be.
    """
    networks = []
    for part in text.split(",") if text else ():
        try:
            networks.append(ip_network(part.strip()))
        except ValueError as error:
            raise ValueError(f"{error}; write it as in 10.0.0.0/8 or 192.168.1.7") from None
    return tuple(networks)


def caller_address(peer: str, forwarded_for: str, trusted: Sequence[Network]) -> str:
    """The address that a request counts as: its peer's, unless that is a trusted proxy.

    A trusted proxy is believed in what it says of its own peer, the last word of `X-Forwarded-For`, and so on from
    right to left; whatever stands further left may be made up. An IPv6 address counts as its network of 64 bits.
    """
    address = _parsed(peer)
    if address is None:
        return peer
    for hop in reversed(forwarded_for.split(",")) if forwarded_for else ():
        before = _parsed(hop)
        if before is None or not any(address in network for network in trusted):
            break
        address = before
    if isinstance(address, IPv6Address) and not address.is_loopback:
        return str(IPv6Network((int(address), _IPV6_PREFIX), strict=False))
    return str(address)


def _parsed(text: str) -> Address | None:
    """An address as peers and proxies write it: alone, with a port, in brackets, with a zone."""
    host = text.strip().strip('"')
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    # IPv4 on a socket for both.
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def address_of(host: str, port: int) -> str:
    """Host and port as grpc wants them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_port(address: str) -> tuple[str, int]:
    """Host and port of an address as people write it; an IPv6 host stands in brackets.

    Raises:
        ValueError: it is none; the message says what it should look like.
    """
    host, separator, port = address.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (separator and host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError(f"{address!r} is no host and port; write it as in 10.0.0.7:50061")
    if ":" in host and not bracketed:
        raise ValueError(f"{address!r} needs brackets around its host, as in [::1]:50061")
    return (host[1:-1] if bracketed else host), int(port)


def parse_runners(text: str) -> tuple[str, ...]:
    """Addresses of runners as people write them, with commas between them; none of nothing.

    Each is an address for grpc, or `FOLLOWED`, a name and a port.

    Raises:
        ValueError: the text is something else; the message says what it may be.
    """
    addresses = []
    for part in text.split(",") if text else ():
        address = part.strip()
        if address.startswith(_SOCKET):
            if not address.removeprefix(_SOCKET).startswith("/"):
                raise ValueError(f"{address!r} needs a whole path, as in unix:/run/runner-0.sock")
        else:
            split_port(address.removeprefix(FOLLOWED))
        addresses.append(address)
    # One that is named twice is one runner all the same.
    return tuple(dict.fromkeys(addresses))


def reachable(host: str) -> str:
    """Where a client on this machine finds what listens on `host`, which may stand for all addresses."""
    with contextlib.suppress(ValueError):
        address = ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"
    return host


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
