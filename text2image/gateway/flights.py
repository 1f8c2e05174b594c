"""Identical requests in flight share one drawing; each keeps its own deadline and its own cancellation."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import aclosing

from text2image.core.errors import (
    DeadlineExceeded,
    PermissionDenied,
    QuotaExceeded,
    Text2ImageError,
    Unavailable,
)
from text2image.core.lifecycle import Ticket, draining
from text2image.core.messages import ClientEvent, Completed, Picture, Progress, Queued
from text2image.net.rpc import as_ours
from text2image.observe.metrics import GatewayMetrics

# Progress that waits for a client who reads slowly; of more than this, the oldest is dropped.
MAX_PROGRESS = 16
# Whoever is refused a seat is told to wait no less, in seconds.
MIN_RETRY_SECONDS = 1.0

# Starts a drawing that must end by a deadline, in the event loop's time; closing the generator ends it.
Draw = Callable[[float, Ticket], AsyncGenerator[ClientEvent, None]]


class Flights:
    """The drawings under way, by what they draw. Use it from one event loop."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._flights: dict[Hashable, _Flight] = {}
        # The event loop alone would let go of a task that is still ending.
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._flights)

    async def join(
        self, key: Hashable, draw: Draw, deadline: float, ticket: Ticket
    ) -> AsyncGenerator[ClientEvent, None]:
        """Streams the events of the drawing called `key`, which `draw` starts if none is under way.

        Who joins late gets the pictures that are finished, the latest progress, and then what follows. Where it fails
        for what concerns another alone, it starts over. Closing the generator gives up the seat; the drawing ends when
        nobody is left. `deadline` is in the event loop's time.

        Raises:
            Text2ImageError: what the drawing failed with, or that the own deadline passed or the time to drain is over.
        """
        flight = self._flights.get(key)
        if flight is None or flight.over:
            flight = self._start(key)
            seat = flight.board(draw, deadline)
        else:
            seat = flight.board(draw, deadline)
            self._metrics.cache.labels("shared").inc()
        ticket.cancel = lambda: seat.put(draining())
        if ticket.expired:
            ticket.cancel()
        try:
            while True:
                event = await seat.next()
                yield event
                if isinstance(event, Completed):
                    return
        finally:
            ticket.cancel = None
            flight.leave(seat)

    def _start(self, key: Hashable) -> _Flight:
        flight = self._flights[key] = _Flight()
        self._tasks.add(flight.task)
        flight.task.add_done_callback(lambda task: self._ended(key, flight, task))
        return flight

    def _ended(self, key: Hashable, flight: _Flight, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._flights.get(key) is flight:
            del self._flights[key]


class _Flight:
    """One drawing, its task, and who waits for it. Each picture is held once, whoever has yet to read it."""

    def __init__(self) -> None:
        self.over = False
        self.task = asyncio.create_task(self._fly())
        # In the order of their coming.
        self._seats: dict[_Seat, None] = {}
        # When the pictures are predicted, and the deadline that they were admitted with.
        self._ready_at: float | None = None
        self._admitted_for = 0.0
        self._progress: dict[int, Progress] = {}
        self._pictures: dict[int, Picture] = {}

    def board(self, draw: Draw, deadline: float) -> _Seat:
        """A seat whose events begin with what has happened so far.

        Raises:
            Unavailable: the pictures would come after the deadline.
        """
        seat = _Seat(draw, deadline)
        if refusal := self._refusal(seat):
            raise refusal
        if self._ready_at is not None:
            seconds = self._ready_at - asyncio.get_running_loop().time()
            seat.put(Queued(max(0.0, seconds)))
        for picture in self._pictures.values():
            seat.put(picture)
        for progress in self._progress.values():
            seat.put(progress)
        self._seats[seat] = None
        return seat

    def leave(self, seat: _Seat) -> None:
        self._seats.pop(seat, None)
        if not self._seats:
            self.over = True
            self.task.cancel()

    async def _fly(self) -> None:
        while self._seats:
            first = next(iter(self._seats))
            self._admitted_for = deadline = max(seat.deadline for seat in self._seats)
            try:
                completed = await self._attempt(first.draw, deadline)
            except Exception as error:
                self._fail(as_ours(error), first, deadline)
            else:
                self._tell(completed)
                self._seats.clear()
        self.over = True

    async def _attempt(self, draw: Draw, deadline: float) -> Completed:
        completed = None
        async with aclosing(draw(deadline, Ticket())) as events:
            async for event in events:
                if isinstance(event, Completed):
                    completed = event
                else:
                    self._pass_on(event)
        assert completed, "a drawing ends in Completed or an error"
        return completed

    def _pass_on(self, event: Queued | Progress | Picture) -> None:
        """Tells what is new: a drawing that started over reports much of it again."""
        match event:
            case Queued(predicted_seconds=seconds):
                if self._ready_at is not None:
                    return
                self._ready_at = asyncio.get_running_loop().time() + seconds
                for seat in list(self._seats):
                    if refusal := self._refusal(seat):
                        seat.put(refusal)
                        del self._seats[seat]
            case Progress(index=index):
                if index in self._pictures:
                    return
                self._progress[index] = event
            case Picture(index=index):
                if index in self._pictures:
                    return
                self._pictures[index] = event
                self._progress.pop(index, None)
        self._tell(event)

    def _tell(self, event: ClientEvent) -> None:
        for seat in self._seats:
            seat.put(event)

    def _refusal(self, seat: _Seat) -> Unavailable | None:
        """What a runner would say to a request with this seat's deadline, in the place of the one it admitted."""
        if self._ready_at is None or seat.deadline >= min(self._ready_at, self._admitted_for):
            return None
        seconds = self._ready_at - asyncio.get_running_loop().time()
        return Unavailable(
            f"the server is full: the pictures would be ready in about {seconds:.0f} s",
            reason=Unavailable.FULL,
            retry_after=max(MIN_RETRY_SECONDS, self._ready_at - seat.deadline),
        )

    def _fail(self, error: Text2ImageError, first: _Seat, deadline: float) -> None:
        """Fails all whom an error concerns; those who are left start over."""
        for seat in list(self._seats):
            if isinstance(error, PermissionDenied | QuotaExceeded):
                fails = seat is first
            elif isinstance(error, DeadlineExceeded) or error.reason == Unavailable.FULL:
                fails = seat.deadline <= deadline
            else:
                fails = True
            if fails:
                seat.put(error)
                del self._seats[seat]


class _Seat:
    """One client: how it would draw, until when it waits, and the events that it has yet to read."""

    def __init__(self, draw: Draw, deadline: float) -> None:
        self.draw = draw
        self.deadline = deadline
        self._waiting: deque[ClientEvent | Text2ImageError] = deque()
        self._arrived = asyncio.Event()

    def put(self, event: ClientEvent | Text2ImageError) -> None:
        if isinstance(event, Progress):
            progress = [other for other in self._waiting if isinstance(other, Progress)]
            if len(progress) >= MAX_PROGRESS:
                self._waiting.remove(progress[0])
        self._waiting.append(event)
        self._arrived.set()

    async def next(self) -> ClientEvent:
        """The next event.

        Raises:
            Text2ImageError: the last of them is an error, or the deadline passed first.
        """
        if not self._waiting:
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(self.deadline):
                    await self._arrived.wait()
            except TimeoutError:
                raise DeadlineExceeded(
                    "the deadline passed before the pictures were finished"
                ) from None
        event = self._waiting.popleft()
        if isinstance(event, Text2ImageError):
            # Others raise the same error, each from where it was.
            raise event.with_traceback(None)
        return event
