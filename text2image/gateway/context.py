"""One request on its way through the gateway: all that belongs to it hangs on one object, and ends with it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from text2image.core.errors import DeadlineExceeded, Text2ImageError
from text2image.core.formats import PNG, Encoding
from text2image.core.messages import (
    ClientEvent,
    ModelInfo,
    Progress,
    Request,
    RequestParams,
    Share,
    StreamOptions,
)
from text2image.gateway.auth import Caller
from text2image.gateway.rate_limits import Spending

# Progress that waits for a client who reads slowly; of more than this, the oldest is dropped.
MAX_PROGRESS = 16


@dataclass(slots=True, eq=False)
class Enlarging:
    """A picture that is enlarged for a caller within so many seconds; `standing` as `RequestContext` has it."""

    caller: Caller
    timeout: float
    standing: tuple[Spending, ...] | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class RequestContext:
    """What a client asked for, what the gateway made of it, and the events that the client has yet to read.

    A transport fills in the first eight and gives the context to `Gateway.stream` or `Gateway.draw`, once.

    Attributes:
        title: what files are named after.
        timeout: seconds that the client gives us.
        encoding: the form that its pictures are saved and answered in.
        background: it is drawn when nobody else waits.
        watch: is told each event as it is read.
        deadline: the same in the event loop's time, from the moment that the gateway took the request.
        model, request: what it is drawn with, and the params with nothing left open.
        standing: where the caller stands with its rate limits, one by one; None until that is known.
    """

    caller: Caller
    params: RequestParams
    title: str
    timeout: float
    options: StreamOptions = field(default_factory=StreamOptions)
    encoding: Encoding = PNG
    background: bool = False
    watch: Callable[[ClientEvent], None] | None = None
    deadline: float = field(init=False)
    model: ModelInfo = field(init=False)
    request: Request = field(init=False)
    standing: tuple[Spending, ...] | None = field(default=None, init=False)
    _unread: deque[ClientEvent | Text2ImageError] = field(default_factory=deque, init=False)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @property
    def share(self) -> Share:
        """The caller's share, in the class of this request."""
        return replace(self.caller.share, background=self.background)

    def put(self, event: ClientEvent | Text2ImageError) -> None:
        """Adds what the client is to read next; an error is the last of it."""
        if isinstance(event, Progress):
            progress = [other for other in self._unread if isinstance(other, Progress)]
            if len(progress) >= MAX_PROGRESS:
                self._unread.remove(progress[0])
        self._unread.append(event)
        self._arrived.set()

    def end(self, error: Text2ImageError) -> None:
        """Makes an error the next and last that the client reads, whatever has waited for it."""
        self._unread.clear()
        self.put(error)

    async def next(self) -> ClientEvent:
        """The next event.

        Raises:
            Text2ImageError: the request has ended with it, or the deadline passed first.
        """
        if not self._unread:
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(self.deadline):
                    await self._arrived.wait()
            except TimeoutError:
                raise DeadlineExceeded(
                    "the deadline passed before the pictures were finished"
                ) from None
        event = self._unread.popleft()
        if isinstance(event, Text2ImageError):
            # Others raise the same error, each from where it was.
            raise event.with_traceback(None)
        if self.watch:
            self.watch(event)
        return event
