"""Identical requests in flight share one drawing; each has its own deadline, its own end and its own cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from dataclasses import replace

from text2image.core.errors import (
    DeadlineExceeded,
    PermissionDenied,
    QuotaExceeded,
    Text2ImageError,
    Unavailable,
)
from text2image.core.messages import ClientEvent, Completed, Loading, Picture, Progress, Queued
from text2image.gateway.context import RequestContext
from text2image.net.rpc import as_ours
from text2image.observe.metrics import GatewayMetrics

# A client that is refused is told to wait no less, in seconds.
MIN_RETRY_SECONDS = 1.0
# How long the cache may take for what was drawn last, in seconds.
CLOSE_SECONDS = 5.0


class Flight:
    """One drawing and the requests that follow it, in the order of their coming.

    What it tells is held once, however many have yet to read it. After an error that concerns some of them alone the
    drawing starts over for the rest, and tells nothing twice.

    Attributes:
        leader: the request on whose account it is drawn.
        deadline: until when, in the event loop's time: that of the most patient.
        completed: all is told; its pictures may still be on their way into the cache.
    """

    leader: RequestContext
    deadline: float
    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.followers: dict[RequestContext, None] = {}
        self.over = False
        self.completed = False
        self._loading: Loading | None = None
        self._ready_at: float | None = None
        self._progress: dict[int, Progress] = {}
        self._pictures: dict[int, Picture] = {}

    def join(self, context: RequestContext) -> None:
        """Has a request follow, beginning with what has happened so far.

        Raises:
            Unavailable: the pictures would come after its deadline.
        """
        if refusal := self._refusal(context):
            raise refusal
        if self._ready_at is None and self._loading:
            context.put(self._loading)
        if self._ready_at is not None:
            context.put(Queued(max(0.0, self._ready_at - _now())))
        for picture in self._pictures.values():
            context.put(picture)
        for progress in self._progress.values():
            context.put(progress)
        self.followers[context] = None

    def leave(self, context: RequestContext) -> None:
        """Ends a request's part in it, and with the last one the drawing."""
        self.followers.pop(context, None)
        if not self.followers and not self.completed:
            self.over = True
            self.task.cancel()

    def begin(self) -> None:
        """Sets out on behalf of those who are here."""
        self.leader = next(iter(self.followers))
        self.deadline = max(context.deadline for context in self.followers)

    def emit(self, event: ClientEvent) -> None:
        """Tells all followers an event, unless it was told before."""
        match event:
            case Queued(predicted_seconds=seconds) if self._ready_at is None:
                self._ready_at = _now() + seconds
                for context in list(self.followers):
                    if refusal := self._refusal(context):
                        context.put(refusal)
                        del self.followers[context]
            case Loading() if self._ready_at is None:
                self._loading = event
            case Progress(index=index) if index not in self._pictures:
                self._progress[index] = event
            case Picture(index=index) if index not in self._pictures:
                self._pictures[index] = event
                self._progress.pop(index, None)
            case Completed():
                self.completed = True
            case _:
                return
        for context in self.followers:
            context.put(event)

    def fail(self, error: Text2ImageError) -> None:
        """Ends all followers whom an error concerns."""
        for context in list(self.followers):
            if isinstance(error, PermissionDenied | QuotaExceeded):
                concerned = context is self.leader
            elif isinstance(error, DeadlineExceeded) or error.reason == Unavailable.FULL:
                concerned = context.deadline <= self.deadline
            else:
                concerned = True
            if concerned:
                context.put(error)
                del self.followers[context]

    def _refusal(self, context: RequestContext) -> Unavailable | None:
        """What a runner would say to a request with this deadline, in the place of the one that it admitted."""
        if self._ready_at is None or context.deadline >= min(self._ready_at, self.deadline):
            return None
        return Unavailable(
            f"the server is full: the pictures would be ready in about {self._ready_at - _now():.0f} s",
            reason=Unavailable.FULL,
            retry_after=max(MIN_RETRY_SECONDS, self._ready_at - context.deadline),
        )


def identity_of(context: RequestContext) -> Hashable:
    """What requests have in common that may share a drawing."""
    if context.params.seed is None:
        # The seed was picked just now, so nobody else can have asked for this picture, or ever will.
        return context
    # The request says which of its adapters it means, of which there may be a thousand.
    model = replace(context.model, loras=(), controls=())
    # One caller's limits and shares are no other's, so one drawing is never that of two callers.
    return (
        model,
        context.request,
        context.options,
        context.encoding,
        context.caller,
        context.background,
    )


class SingleFlight:
    """The drawings under way, by what they draw. Use it from one event loop."""

    def __init__(self, draw: Callable[[Flight], Awaitable[None]], metrics: GatewayMetrics) -> None:
        """
        Args:
            draw: draws for a flight until it has emitted `Completed`, or raises; may go on for a while after that.
        """
        self._draw = draw
        self._metrics = metrics
        self._flights: dict[Hashable, Flight] = {}
        # The event loop alone would let go of a task that is still ending.
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._flights)

    async def follow(
        self, key: Hashable, context: RequestContext
    ) -> AsyncGenerator[ClientEvent, None]:
        """Streams the events of the drawing called `key`, which is started if none is under way.

        Closing the generator leaves the drawing, which ends when nobody follows it.

        Raises:
            Text2ImageError: what the drawing failed with, or that the request's own deadline passed or would.
        """
        while (flight := self._flights.get(key)) and flight.completed:
            # A moment, and the pictures are in the cache.
            await asyncio.wait({flight.task})
        if flight is None or flight.over:
            flight = self._start(key, context)
        else:
            flight.join(context)
            self._metrics.cache.labels("shared").inc()
        try:
            while True:
                event = await context.next()
                yield event
                if isinstance(event, Completed):
                    return
        finally:
            flight.leave(context)

    async def close(self) -> None:
        """Waits for what is under way, but not for ever."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)

    def _start(self, key: Hashable, first: RequestContext) -> Flight:
        flight = self._flights[key] = Flight()
        flight.join(first)
        flight.task = asyncio.create_task(self._fly(flight))
        self._tasks.add(flight.task)
        flight.task.add_done_callback(lambda task: self._ended(key, flight, task))
        return flight

    async def _fly(self, flight: Flight) -> None:
        while flight.followers:
            flight.begin()
            try:
                await self._draw(flight)
            except Exception as error:
                flight.fail(as_ours(error))
            else:
                break
        flight.over = True

    def _ended(self, key: Hashable, flight: Flight, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._flights.get(key) is flight:
            del self._flights[key]


def _now() -> float:
    return asyncio.get_running_loop().time()
