"""The addresses behind a name, followed as they change: a headless service has one for each of its runners."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from text2image.core.addresses import FOLLOWED, address_of, split_port

logger = logging.getLogger(__name__)

# Seconds between two looks at a name. Records of a headless service live a few seconds, and a resolver keeps them.
LOOK_SECONDS = 2.0


def name_in(address: str) -> str:
    """The name that an address follows, or nothing if it is that of one runner."""
    return split_port(address.removeprefix(FOLLOWED))[0] if address.startswith(FOLLOWED) else ""


async def follow(address: str, found: Callable[[frozenset[str]], None]) -> None:
    """Tells of all addresses behind a name, now and again, until it is cancelled.

    A name that cannot be looked up tells nothing: those who were behind it may well be there still.
    """
    name, port = split_port(address.removeprefix(FOLLOWED))
    told = ""
    while True:
        try:
            found(await _look_up(name, port))
            told = ""
        except OSError as error:
            # Also what a headless service without runners looks like.
            if str(error) != told:
                told = str(error)
                logger.warning("nobody is found behind %s: %s", name, error)
        await asyncio.sleep(LOOK_SECONDS)


async def _look_up(name: str, port: int) -> frozenset[str]:
    loop = asyncio.get_running_loop()
    answers = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return frozenset(address_of(str(host), port) for *_, (host, *_) in answers)
