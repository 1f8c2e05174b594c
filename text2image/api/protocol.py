"""The HTTP connection that refuses by itself what a full server can only refuse.

A task, an ASGI application and its layers take several times as long as the refusal: what is refused here costs little
more than its parsing.
"""

from __future__ import annotations

import asyncio
import logging
import math
from time import sleep

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from text2image.api.unread import Refusal, Unread

logger = logging.getLogger(__name__)

# Seconds in which those gather who come in a crowd and are refused. To wake for each of them would take longer than the
# refusal, and each time a core from what draws: as network cards do, this lets some come first. Nobody gathers when a
# refusal is about to end, or somebody is on the way to find out: whoever is let in then should get there soon.
GATHER = 0.005


def refusing(unread: Unread) -> type[asyncio.Protocol]:
    """uvicorn's protocol, which asks `unread` before it begins a request."""
    return type("Refusing", (RefusingProtocol,), {"unread": unread, "crowd": Crowd()})


class Crowd:
    """Has an event loop stand still for a moment, while more come, when refusals follow closely upon each other."""

    def __init__(self) -> None:
        self._last = -math.inf
        self._gathering = False

    def refused(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call it after each refusal."""
        now = loop.time()
        if now - self._last < GATHER and not self._gathering:
            self._gathering = True
            loop.call_soon(self._gather)
        self._last = now

    def _gather(self) -> None:
        sleep(GATHER)
        self._gathering = False


class RefusingProtocol(HttpToolsProtocol):
    """Holds a request that may be refused until its body is there, for as long as one piece of data is parsed."""

    unread: Unread
    crowd: Crowd
    _held: list[bytes] | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._held is None:
            return
        if self.transport.is_closing():
            self._held = None
        else:
            # The rest of its body is still to come, which is waited for elsewhere.
            self._begin()

    def on_headers_complete(self) -> None:
        if self._is_idle() and self.unread.may_refuse(
            self.parser.get_method(), self.url, self.headers
        ):
            self._held = []
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
        else:
            self._held.append(body)

    def on_message_complete(self) -> None:
        if self._held is not None:
            refusal = self._refusal(b"".join(self._held))
            if refusal is not None:
                self._held = None
                self._answer(refusal)
                return
            self._begin()
        super().on_message_complete()

    def _refusal(self, body: bytes) -> Refusal | None:
        try:
            return self.unread.refusal(self.scope, self.url, body)
        except Exception:
            # The parser would take it for a fault of the client's.
            logger.exception("a request was not refused in front of the application")
            return None

    def _is_idle(self) -> bool:
        """Whether an answer may be sent at once: none is on its way, and the client takes what it is sent."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self.parser.should_upgrade()
        )

    def _begin(self) -> None:
        """Begins the request that was held, as if it came just now."""
        held, self._held = self._held or (), None
        super().on_headers_complete()
        for body in held:
            super().on_body(body)

    def _answer(self, refusal: Refusal) -> None:
        if self.transport.is_closing():
            return
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        lines = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        if not keep_alive:
            lines.append(b"connection: close\r\n")
        self.transport.write(b"".join((refusal.head, *lines, b"\r\n", refusal.body)))
        if refusal.lasts > GATHER:
            self.crowd.refused(self.loop)
        if keep_alive:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.transport.close()
