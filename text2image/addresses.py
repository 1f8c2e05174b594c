"""Where clients call from: the address that a request counts as, with and without proxies on its way."""

from __future__ import annotations

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
