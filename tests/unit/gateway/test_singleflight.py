"""Identical requests share one drawing, and none of them notices the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from text2image.core.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    PermissionDenied,
    QuotaExceeded,
    Text2ImageError,
    Unavailable,
)
from text2image.core.lifecycle import draining
from text2image.core.messages import (
    ClientEvent,
    Completed,
    Picture,
    Progress,
    Queued,
    RequestParams,
    Share,
    Timings,
)
from text2image.gateway.auth import Caller
from text2image.gateway.context import MAX_PROGRESS, RequestContext
from text2image.gateway.singleflight import Flight, SingleFlight
from text2image.observe.metrics import GatewayMetrics

FULL = Unavailable("full", reason=Unavailable.FULL, retry_after=1.0)
PICTURES = [
    Picture(index=index, seed=index, width=1, height=1, png=b"", path="", timings=Timings(0, 0, 0))
    for index in range(3)
]
DONE = Completed("")
Step = ClientEvent | Exception


class Drawings:
    """Drawings whose every event the test decides: `say` is what the latest one does next."""

    def __init__(self) -> None:
        self.deadlines: list[float] = []
        self.open = 0
        self._steps: asyncio.Queue[Step] = asyncio.Queue()
        # What is drawn is in the cache.
        self.kept = asyncio.Event()
        self.kept.set()

    def say(self, *steps: Step) -> None:
        for step in steps:
            self._steps.put_nowait(step)

    @property
    def heard(self) -> bool:
        """Whether all that was said has been drawn."""
        return self._steps.empty()

    async def draw(self, flight: Flight) -> None:
        self.deadlines.append(flight.deadline)
        self._steps = asyncio.Queue()
        self.open += 1
        try:
            while True:
                step = await self._steps.get()
                if isinstance(step, Exception):
                    raise step
                flight.emit(step)
                if isinstance(step, Completed):
                    break
            await self.kept.wait()
        finally:
            self.open -= 1


class Airport:
    """Flights, and clients who each read in a task of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.drawings = Drawings()
        self.flights = SingleFlight(self.drawings.draw, GatewayMetrics(self.registry))

    def join(
        self, seconds: float = 60.0, context: RequestContext | None = None, key: object = "fox"
    ) -> AsyncGenerator[ClientEvent, None]:
        context = context or asking()
        context.deadline = asyncio.get_running_loop().time() + seconds
        return self.flights.follow(key, context)

    def reader(self, **options: object) -> asyncio.Task[list[ClientEvent]]:
        return asyncio.create_task(collect(self.join(**options)))  # type: ignore[arg-type]

    async def drawing(self, count: int = 1) -> None:
        """Returns when so many drawings have begun."""
        await eventually(lambda: len(self.drawings.deadlines) == count)

    def shared(self) -> float | None:
        return self.registry.get_sample_value("text2image_cache_total", {"outcome": "shared"})


def asking() -> RequestContext:
    caller = Caller("address:127.0.0.1", Share("address:127.0.0.1"))
    return RequestContext(
        caller=caller, params=RequestParams(prompt="a fox"), title="", timeout=60.0
    )


async def collect(events: AsyncGenerator[ClientEvent, None]) -> list[ClientEvent]:
    return [event async for event in events]


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def airport() -> AsyncIterator[Airport]:
    """Nobody may be left in it, and no drawing."""
    airport = Airport()
    yield airport
    await eventually(lambda: not len(airport.flights))
    assert not airport.drawings.open


async def test_all_who_ask_for_the_same_get_one_drawing(airport: Airport) -> None:
    readers = [airport.reader() for _ in range(20)]
    await airport.drawing()
    story = [Queued(1.0), Progress(0, 1, 2), PICTURES[0], DONE]
    airport.drawings.say(*story)
    for events in await asyncio.gather(*readers):
        assert events == story
    assert len(airport.drawings.deadlines) == 1
    assert airport.shared() == 19


async def test_who_asks_for_something_else_gets_a_drawing_of_their_own(airport: Airport) -> None:
    readers = [airport.reader(key=key) for key in ("fox", "cat")]
    await airport.drawing(2)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)


async def test_who_joins_late_gets_what_there_is_and_then_what_follows(airport: Airport) -> None:
    first = airport.reader()
    await airport.drawing()
    airport.drawings.say(Queued(9.0), Progress(1, 1, 3), PICTURES[1])
    airport.drawings.say(Progress(0, 1, 3), Progress(0, 2, 3))
    await eventually(lambda: airport.drawings.heard)
    late = airport.join()
    queued = await anext(late)
    assert isinstance(queued, Queued)
    assert 0 < queued.predicted_seconds <= 9.0
    assert [await anext(late), await anext(late)] == [PICTURES[1], Progress(0, 2, 3)]
    airport.drawings.say(PICTURES[0], DONE)
    assert await collect(late) == [PICTURES[0], DONE]
    assert len(await first) == 7


async def test_who_comes_after_the_end_gets_a_new_drawing(airport: Airport) -> None:
    for count in (1, 2):
        reader = airport.reader()
        await airport.drawing(count)
        airport.drawings.say(Queued(1.0), DONE)
        await reader


async def test_what_is_drawn_is_answered_first_and_kept_then(airport: Airport) -> None:
    """The same request meanwhile waits until it is in the cache, and asks there."""
    airport.drawings.kept.clear()
    first = airport.reader()
    await airport.drawing()
    airport.drawings.say(Queued(9.0), PICTURES[0], DONE)
    assert await first == [Queued(9.0), PICTURES[0], DONE]
    assert airport.drawings.open == 1, "its last reader does not end it"
    again = airport.reader()
    await eventually(lambda: airport.drawings.heard)
    assert not again.done()
    assert len(airport.drawings.deadlines) == 1
    airport.drawings.kept.set()
    await airport.drawing(2)
    airport.drawings.say(DONE)
    assert await again == [DONE]


async def test_the_first_may_leave_and_the_others_get_their_picture(airport: Airport) -> None:
    first, second = airport.reader(), airport.reader()
    await airport.drawing()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    airport.drawings.say(PICTURES[0], DONE)
    assert await second == [PICTURES[0], DONE]
    assert len(airport.drawings.deadlines) == 1


async def test_when_the_last_one_leaves_the_drawing_ends(airport: Airport) -> None:
    readers = [airport.reader() for _ in range(3)]
    await airport.drawing()
    for reader in readers:
        assert airport.drawings.open
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader
    newcomer = airport.reader()
    await eventually(lambda: len(airport.drawings.deadlines) == 2)
    airport.drawings.say(DONE)
    assert await newcomer == [DONE]


async def test_each_has_a_deadline_of_its_own(airport: Airport) -> None:
    patient, hasty = airport.reader(), airport.reader(seconds=0.01)
    with pytest.raises(DeadlineExceeded):
        await hasty
    airport.drawings.say(PICTURES[0], DONE)
    assert await patient == [PICTURES[0], DONE]
    assert len(airport.drawings.deadlines) == 1


async def test_who_comes_too_late_for_its_deadline_is_refused_at_once(airport: Airport) -> None:
    """As it would be by the runner, whether it comes before or after that has told how long it will take."""
    first, hasty = airport.reader(seconds=300), airport.reader(seconds=60)
    await airport.drawing()
    airport.drawings.say(Queued(100.0))
    late = airport.reader(seconds=60)
    for refused in (hasty, late, airport.reader(seconds=60)):
        with pytest.raises(Unavailable, match="ready in about 100 s") as raised:
            await asyncio.wait_for(refused, 10)
        assert raised.value.reason == Unavailable.FULL
        assert raised.value.retry_after == pytest.approx(40, abs=5)
    patient = airport.reader(seconds=150)
    await eventually(lambda: airport.shared() is not None)
    airport.drawings.say(DONE)
    assert len(await first) == len(await patient) == 2
    assert len(airport.drawings.deadlines) == 1


async def test_whom_the_runner_admitted_is_never_refused(airport: Airport) -> None:
    """The way of the answer takes time, so what was predicted just in time looks too late on arrival."""
    first = airport.reader(seconds=60)
    await airport.drawing()
    airport.drawings.say(Queued(60.0), DONE)
    assert await first == [Queued(60.0), DONE]


@pytest.mark.parametrize("error", [DeadlineExceeded("too late"), FULL])
async def test_who_has_more_time_starts_over_when_the_first_ones_time_is_too_short(
    airport: Airport, error: Text2ImageError
) -> None:
    hasty = airport.reader(seconds=60)
    await airport.drawing()
    airport.drawings.say(Queued(1.0), PICTURES[0])
    patient = airport.reader(seconds=90)
    await eventually(lambda: airport.shared() == 1)
    airport.drawings.say(error)
    with pytest.raises(type(error)):
        await hasty
    await airport.drawing(2)
    assert airport.drawings.deadlines[1] == pytest.approx(airport.drawings.deadlines[0] + 30, abs=5)
    airport.drawings.say(Queued(2.0), Progress(0, 1, 2), PICTURES[0], PICTURES[1], DONE)
    events = await patient
    assert [event for event in events if isinstance(event, Picture)] == PICTURES[:2]
    assert len([event for event in events if isinstance(event, Queued)]) == 1
    assert Progress(0, 1, 2) not in events, "what is finished does not begin again"


@pytest.mark.parametrize(
    "error", [QuotaExceeded("spent", retry_after=1.0), PermissionDenied("too large")]
)
async def test_a_limit_is_that_of_whoever_met_it(airport: Airport, error: Text2ImageError) -> None:
    """The others go on under their own."""
    spent, other = airport.reader(), airport.reader()
    await airport.drawing()
    airport.drawings.say(error)
    with pytest.raises(type(error)):
        await spent
    await airport.drawing(2)
    airport.drawings.say(DONE)
    assert await other == [DONE]


async def test_it_ends_when_nobodys_time_is_long_enough(airport: Airport) -> None:
    readers = [airport.reader(seconds=60 + more) for more in range(3)]
    await airport.drawing()
    airport.drawings.say(DeadlineExceeded("too late"))
    for reader in readers:
        with pytest.raises(DeadlineExceeded, match="too late"):
            await reader
    assert len(airport.drawings.deadlines) == 1, "the longest time is tried first"


@pytest.mark.parametrize(
    "error",
    [
        Cancelled("gone"),
        Unavailable("loading", reason=Unavailable.LOADING, retry_after=1.0),
        ZeroDivisionError("a bug"),
    ],
)
async def test_an_error_reaches_all(airport: Airport, error: Exception) -> None:
    readers = [airport.reader() for _ in range(3)]
    await airport.drawing()
    airport.drawings.say(Queued(1.0), error)
    outcomes = await asyncio.gather(*readers, return_exceptions=True)
    assert len({id(outcome) for outcome in outcomes}) == 1
    kind = type(error) if isinstance(error, Text2ImageError) else Internal
    assert isinstance(outcomes[0], kind)


async def test_the_end_of_draining_ends_all(airport: Airport) -> None:
    contexts = [asking() for _ in range(3)]
    readers = [airport.reader(context=context) for context in contexts]
    await airport.drawing()
    for context in contexts:
        context.put(draining())
    for reader in readers:
        with pytest.raises(Unavailable) as raised:
            await reader
        assert raised.value.reason == Unavailable.DRAINING
    late = asking()
    late.put(draining())
    with pytest.raises(Unavailable):
        await airport.reader(context=late)


async def test_who_reads_slowly_holds_nobody_up_and_misses_progress_alone(
    airport: Airport,
) -> None:
    slow = airport.join()
    fast = airport.reader()
    steps = 10 * MAX_PROGRESS
    await airport.drawing()
    airport.drawings.say(Queued(1.0))
    assert await anext(slow) == Queued(1.0)
    progress = [Progress(0, step, steps) for step in range(steps)]
    for event in (*progress[:-1], PICTURES[1], progress[-1], PICTURES[0], DONE):
        airport.drawings.say(event)
        for _ in range(5):
            await asyncio.sleep(0)
    assert len(await fast) == steps + 4
    events = await collect(slow)
    seen = [event for event in events if isinstance(event, Progress)]
    assert seen == progress[-MAX_PROGRESS:]
    assert [event for event in events if isinstance(event, Picture)] == [PICTURES[1], PICTURES[0]]
    assert events[-1] == DONE


@settings(max_examples=200)
@given(st.lists(st.sampled_from(["join", "leave", "picture", "fail", "late", "done"]), max_size=30))
def test_everybody_ends_once_with_all_pictures_or_the_error(plan: list[str]) -> None:
    """Whoever joins and leaves when, and however often the drawing fails."""
    asyncio.run(fly(plan))


async def fly(plan: list[str]) -> None:
    airport = Airport()
    readers: list[asyncio.Task[list[ClientEvent]]] = []
    pictures = 0
    for act in [*plan, "done"]:
        if act == "join":
            readers.append(airport.reader(seconds=60 + len(readers)))
        elif act == "leave" and readers:
            readers[len(readers) // 2].cancel()
        elif act == "picture":
            airport.drawings.say(replace(PICTURES[0], index=pictures % 3))
            pictures += 1
        elif act in ("fail", "late"):
            airport.drawings.say(Cancelled("") if act == "fail" else DeadlineExceeded(""))
        elif act == "done":
            airport.drawings.say(*(replace(PICTURES[0], index=index) for index in range(3)), DONE)
        for _ in range(10):
            await asyncio.sleep(0)
    outcomes = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), 30)
    for outcome in outcomes:
        if isinstance(outcome, list):
            assert sorted(event.index for event in outcome if isinstance(event, Picture)) == [
                0,
                1,
                2,
            ]
            assert outcome[-1] == DONE
        else:
            assert isinstance(outcome, Cancelled | DeadlineExceeded | asyncio.CancelledError)
    await eventually(lambda: not len(airport.flights))
    assert not airport.drawings.open
