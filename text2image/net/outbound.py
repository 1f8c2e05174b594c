"""Connections to places that a client names, and never to what only this machine or its network can reach.

A name is resolved once, every address that it has is checked, and the connection goes to one of those: a name that
resolves otherwise the next moment gains nobody anything. Whatever way an address is written in, as a decimal number or
as IPv4 within IPv6, the check sees what the operating system makes of it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

import httpcore

from text2image.core.addresses import Address

MAX_URL = 2000
# IPv4 in these is what a translator on the way makes of it: NAT64 (RFC 6052) and 6to4 (RFC 3056).
_NAT64 = IPv6Network("64:ff9b::/96")


class Refused(OSError):
    """The place is none that may be connected to."""


def is_public(address: Address) -> bool:
    """Whether an address is somebody's on the open internet, for one receiver alone."""
    if isinstance(address, IPv6Address):
        inner = _inner(address)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _inner(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour or _compatible(address)


def _compatible(address: IPv6Address) -> IPv4Address | None:
    # `::a.b.c.d`, long out of use; `::` and `::1` are addresses of their own.
    number = int(address)
    return IPv4Address(number) if 1 < number < 1 << 32 else None


def check_url(url: str) -> None:
    """Does nothing if a URL is one that can be sent to, whatever its host resolves to.

    Raises:
        ValueError: it is not; the message says what it should look like.
    """
    if len(url) > MAX_URL:
        raise ValueError(f"is longer than {MAX_URL} characters")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("holds characters that no URL has; write them as %20 and so on")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("must be a URL as in https://example.com/hooks")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must have no user or password in it")
    if parts.fragment:
        raise ValueError("must have no # in it")


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections for httpcore, to public addresses alone."""

    def __init__(self, *, allow_private: bool = False) -> None:
        self._allow_private = allow_private
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - as httpcore has it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await resolve(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"{host} was not resolved in time") from error
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved") from error
        if not self._allow_private:
            require_public(host, addresses)
        return await self._first(addresses, port, timeout, local_address, socket_options)

    async def _first(
        self,
        addresses: list[str],
        port: int,
        timeout: float | None,  # noqa: ASYNC109 - as httpcore has it
        local_address: str | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address that takes one."""
        for left, address in zip(reversed(range(len(addresses))), addresses, strict=True):
            try:
                return await self._backend.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except httpcore.ConnectError:
                if not left:
                    raise
        raise httpcore.ConnectError("the name has no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - as httpcore has it
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise Refused("sockets of this machine are not connected to")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, each once, in the order in which they should be tried.

    Raises:
        OSError: it has none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def require_public(host: str, addresses: Iterable[str]) -> None:
    """Does nothing if all of a host's addresses are public.

    Raises:
        Refused: one is not. Which one is not told: it is no business of whoever named the host.
    """
    for address in addresses:
        try:
            public = is_public(ip_address(address.partition("%")[0]))
        except ValueError:
            public = False
        if not public:
            raise Refused(
                f"{host[:80]} is an address of a private network, or of this machine; T2I_WEBHOOK_ALLOW_PRIVATE=1 "
                "lets webhooks go there"
            )
