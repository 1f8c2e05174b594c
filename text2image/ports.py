"""Addresses to listen on and to connect to, and the check that a port is free.

The check is made before any process is started that would fail for it again and again.
"""

from __future__ import annotations

import contextlib
import os
import socket
from ipaddress import ip_address

# An address that stands for all runners behind a name, which come and go.
FOLLOWED = "dns:///"
_SOCKET = "unix:"


def require_free(host: str, port: int, protocol: str, variable: str) -> None:
    """Does nothing if a server could listen there.

    Raises:
        SystemExit: with one line that says which port is taken and which variable chooses another.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, number) as probe:
            # As servers do: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            # Two sockets may be bound so, but only one of them can listen.
            probe.listen()
    except OSError as error:
        raise SystemExit(
            f"text2image: cannot serve {protocol} on {host}:{port}: {error.strerror}; "
            f"set {variable} to another port"
        ) from None


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


def bound_to(descriptor: int) -> tuple[str, int]:
    """Host and port of an open socket that listens on TCP; the descriptor stays open."""
    with socket.socket(fileno=os.dup(descriptor)) as listening:
        host, port = listening.getsockname()[:2]
    return str(host), int(port)
