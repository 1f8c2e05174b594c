"""The engine's thread and its asynchronous face, on a model without torch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.doubles import TimedModel, make_request
from text2image.core.errors import DeadlineExceeded, Internal, Text2ImageError, Unavailable
from text2image.core.messages import (
    Completed,
    Event,
    GeneratedImage,
    Progress,
    Queued,
    Request,
    State,
    StreamOptions,
)
from text2image.engine import reports
from text2image.engine.engine import Engine
from text2image.engine.memory import MemoryGuard
from text2image.engine.models.contract import DeviceLost, OutOfMemory, Unread
from text2image.engine.sample import Generation


class GatedModel(TimedModel):
    """Takes a step only when the test opens the gate, and notes which threads called it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[int] = set()

    def encode(self, samples: Any) -> list[Unread]:
        self.threads.add(threading.get_ident())
        return super().encode(samples)

    def predict(self, samples: Any) -> list[Any]:
        self.threads.add(threading.get_ident())
        assert self.gate.wait(30)
        return super().predict(samples)

    def decode(self, samples: Any) -> list[Any]:
        self.threads.add(threading.get_ident())
        return super().decode(samples)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition, and fails if it does not come."""
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(model: TimedModel, **limits: Any) -> AsyncIterator[Engine]:
    engine = Engine(lambda report: model, **limits)
    engine.start()
    await until(lambda: engine.status.state is State.READY)
    yield engine
    await engine.stop()


async def collect(
    engine: Engine,
    request: Request,
    options: StreamOptions | None = None,
    time_limit: float = 1e6,
) -> list[Event]:
    events = engine.generate(request, options or StreamOptions(), time_limit=time_limit)
    return [event async for event in events]


async def test_a_request_streams_queued_progress_images_and_completed_in_this_order() -> None:
    async with running(TimedModel()) as engine:
        events = await collect(engine, make_request(steps=3, n=2), StreamOptions(progress_every=1))
    kinds = [type(event) for event in events]
    assert kinds[0] is Queued
    assert kinds[-1] is Completed
    assert kinds.count(GeneratedImage) == 2
    assert kinds.count(Progress) == 6


async def test_who_does_not_read_keeps_the_newest_progress_and_every_picture_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reports, "REPORTS_PER_SECOND", 1000)
    async with running(TimedModel()) as engine:
        every_step = StreamOptions(progress_every=1, preview_every=1)
        events = engine.generate(make_request(steps=200, n=2), every_step, time_limit=1e6)
        async with aclosing(events):
            assert isinstance(await anext(events), Queued)
            (stream,) = engine._streams.values()
            await until(lambda: isinstance(stream.newest, Completed))
            unread = [event async for event in events]
    assert isinstance(unread[-1], Completed)
    assert sorted(each.index for each in unread if isinstance(each, GeneratedImage)) == [0, 1]
    for index in (0, 1):
        steps = [each.step for each in unread if isinstance(each, Progress) and each.index == index]
        assert steps == [197, 198, 199, 200]


async def test_before_the_model_is_loaded_requests_are_refused_with_a_delay() -> None:
    gate = threading.Event()

    def load(report: Callable[[str], None]) -> TimedModel:
        report("reading weights")
        gate.wait(30)
        return TimedModel()

    engine = Engine(load)
    engine.start()
    await until(lambda: engine.status.detail == "reading weights")
    with pytest.raises(Unavailable, match="reading weights") as refusal:
        await collect(engine, make_request())
    assert refusal.value.reason == Unavailable.LOADING
    assert refusal.value.retry_after
    gate.set()
    await until(lambda: engine.status.state is State.READY)
    await engine.stop()


async def test_a_model_that_finds_no_memory_says_what_needs_less() -> None:
    def load(report: Callable[[str], None]) -> TimedModel:
        raise OutOfMemory("tried to allocate 9 GiB")

    engine = Engine(load)
    engine.start()
    await until(lambda: engine.status.state is State.FAILED)
    for part in ("9 GiB", "T2I_DTYPE", "T2I_MODEL", "T2I_DEVICE"):
        assert part in engine.status.detail
    await engine.stop()


async def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_again() -> None:
    tries = iter([OSError("no such model"), None])
    again = threading.Event()

    def load(report: Callable[[str], None]) -> TimedModel:
        if error := next(tries):
            raise error
        assert again.wait(30)
        return TimedModel()

    engine = Engine(load, load_retry_seconds=0.05)
    engine.start()
    await until(lambda: engine.status.state is State.FAILED)
    assert "no such model" in engine.status.detail
    with pytest.raises(Unavailable):
        await collect(engine, make_request())
    again.set()
    await until(lambda: engine.status.state is State.READY)
    await collect(engine, make_request())
    await engine.stop()


async def test_a_drain_that_begins_while_the_model_is_loading_is_not_undone() -> None:
    gate = threading.Event()

    def load(report: Callable[[str], None]) -> TimedModel:
        assert gate.wait(30)
        report("loaded after all")
        return TimedModel()

    engine = Engine(load)
    engine.start()
    assert await engine.drain(grace=0)
    gate.set()
    await engine.stop()
    await asyncio.sleep(0)
    assert engine.status.state is State.DRAINING


async def test_invariant_7_leaving_the_stream_ends_the_work_within_one_step() -> None:
    model = GatedModel()
    async with running(model) as engine:
        model.gate.clear()
        events = engine.generate(make_request(steps=100), StreamOptions(), time_limit=1e6)
        async with aclosing(events):
            assert isinstance(await anext(events), Queued)
        model.gate.set()
        await until(lambda: engine.status.counters.cancelled == 1)
        assert engine.status.counters.sample_steps <= 1
        assert engine.status.counters.steps_saved >= 99
        assert engine.status.active == 0


async def test_invariant_7_a_deadline_ends_a_request_that_has_begun() -> None:
    model = GatedModel()
    async with running(model) as engine:
        model.gate.clear()
        # Opens long after the deadline; until then the first step is under way.
        opener = threading.Timer(2.5, model.gate.set)
        opener.start()
        with pytest.raises(DeadlineExceeded):
            await collect(engine, make_request(steps=50), time_limit=0.5)
        opener.join()
        assert engine.status.counters.sample_steps <= 1


async def test_invariant_9_the_model_is_only_ever_called_from_one_thread_that_is_not_the_loops() -> (
    None
):
    model = GatedModel()
    async with running(model) as engine:
        await asyncio.gather(*(collect(engine, make_request(seed=seed)) for seed in range(8)))
    assert len(model.threads) == 1
    assert threading.get_ident() not in model.threads


async def test_invariant_10_an_idle_engine_does_not_wake_up() -> None:
    async with running(TimedModel()) as engine:
        await collect(engine, make_request())
        assert engine._worker.thread is not None
        status = Path(f"/proc/self/task/{engine._worker.thread.native_id}/status")

        def switches() -> int:
            lines = status.read_text().splitlines()
            return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

        async def woken_in(seconds: float) -> int:
            before, end = switches(), time.monotonic() + seconds
            while time.monotonic() < end:
                await asyncio.sleep(0.1)
            return switches() - before

        async with asyncio.timeout(30):
            while await woken_in(0.2):
                pass
        # Other threads may interrupt it now and then; one that polls would be woken by the hundred.
        assert await woken_in(1.0) <= 5, "the engine's thread polls"


async def test_invariant_6_what_fails_while_it_is_taken_in_fails_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = MemoryGuard.refusal

    def refusal(guard: MemoryGuard, generation: Generation) -> Text2ImageError | None:
        if (
            generation.request.prompt == "broken"
            and threading.current_thread() is not threading.main_thread()
        ):
            raise RuntimeError("the driver does not tell")
        return original(guard, generation)

    monkeypatch.setattr(MemoryGuard, "refusal", refusal)
    model = GatedModel()
    async with running(model) as engine:
        model.gate.clear()
        good = asyncio.create_task(collect(engine, make_request()))
        await until(lambda: engine.status.active == 1)
        broken = asyncio.create_task(collect(engine, make_request("broken")))
        await until(lambda: engine.status.counters.admitted == 2)
        model.gate.set()
        async with asyncio.timeout(30):
            with pytest.raises(Internal):
                await broken
            assert isinstance((await good)[-1], Completed)
            assert isinstance((await collect(engine, make_request()))[-1], Completed)
        assert engine.status.state is State.READY


async def test_invariant_6_a_reading_of_the_memory_that_fails_fails_the_request_that_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = Unavailable("full", reason=Unavailable.FULL, retry_after=1)
    async with running(TimedModel()) as engine:
        with monkeypatch.context() as patched:
            patched.setattr(MemoryGuard, "refusal", lambda *_: full)
            patched.setattr(MemoryGuard, "refresh", Mock(side_effect=RuntimeError("no driver")))
            with pytest.raises(RuntimeError, match="no driver"):
                async with asyncio.timeout(30):
                    await collect(engine, make_request())
        assert isinstance((await collect(engine, make_request()))[-1], Completed)


async def test_draining_finishes_what_was_admitted_and_refuses_the_rest() -> None:
    model = GatedModel()
    async with running(model) as engine:
        model.gate.clear()
        admitted = asyncio.create_task(collect(engine, make_request(steps=5)))
        await until(lambda: engine.status.active == 1)
        drained = asyncio.create_task(engine.drain(grace=30))
        await until(lambda: engine.status.state is State.DRAINING)
        with pytest.raises(Unavailable) as refusal:
            await collect(engine, make_request())
        assert refusal.value.reason == Unavailable.DRAINING
        model.gate.set()
        assert isinstance((await admitted)[-1], Completed)
        assert await drained


async def test_draining_waits_no_longer_than_its_grace() -> None:
    model = GatedModel()
    async with running(model) as engine:
        model.gate.clear()
        stuck = asyncio.create_task(collect(engine, make_request()))
        await until(lambda: engine.status.active == 1)
        assert not await engine.drain(grace=0.1)
        model.gate.set()
        await stuck


async def test_watching_shows_the_state_now_and_each_change() -> None:
    async with running(TimedModel()) as engine:
        seen = []
        async with asyncio.timeout(30), aclosing(engine.watch(min_interval=0)) as statuses:
            async for status in statuses:
                seen.append(status)
                if len(seen) == 1:
                    await collect(engine, make_request())
                if status.counters.completed == 1:
                    break
    assert seen[0].state is State.READY


async def test_a_lost_device_fails_the_engine_and_calls_for_a_new_process() -> None:
    class Lost(TimedModel):
        def predict(self, samples: Any) -> list[Any]:
            if samples[0].generation.request.prompt == "a cat":
                raise DeviceLost("an illegal memory access")
            return super().predict(samples)

    called = threading.Event()
    async with running(Lost(), on_device_lost=called.set) as engine:
        stream = asyncio.create_task(collect(engine, make_request("a cat")))
        await until(called.is_set)
        await until(lambda: engine.status.state is State.FAILED)
        stream.cancel()
