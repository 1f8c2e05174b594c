"""Ports: the check that one is free, before any process starts that would fail for it again and again."""

from __future__ import annotations

import os
import socket


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


def bound_to(descriptor: int) -> tuple[str, int]:
    """Host and port of an open socket that listens on TCP; the descriptor stays open."""
    with socket.socket(fileno=os.dup(descriptor)) as listening:
        host, port = listening.getsockname()[:2]
    return str(host), int(port)
