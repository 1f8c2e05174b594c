"""Invariant 7: what a sample took is released once, whichever way it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.doubles import POISON, TimedModel, make_request
from tests.harness import Harness
from tests.unit.engine.test_engine import GatedModel, running, until
from text2image.core.messages import StreamOptions
from text2image.engine.memory import MemoryGuard
from text2image.engine.models.contract import OutOfMemory
from text2image.engine.sample import Sample
from text2image.engine.warmup import measure


def assert_released_once(model: TimedModel, at_least: int = 1) -> None:
    assert len(model.started) >= at_least
    assert model.released == dict.fromkeys(model.started, 1)
    assert all(sample.state is None for sample in model.started)


def finished(harness: Harness) -> None:
    harness.submit(make_request(n=3))


def failed_in_its_start(harness: Harness) -> None:
    start = harness.model.start

    def broken(samples: Sequence[Sample]) -> None:
        if any(sample.index == 1 for sample in samples):
            raise ValueError("no noise")
        start(samples)

    harness.model.start = broken  # type: ignore[method-assign]
    harness.submit(make_request(n=2))


def failed_in_a_pass(harness: Harness) -> None:
    harness.submit(make_request(POISON, n=2))


def failed_in_its_step(harness: Harness) -> None:
    def advance_one(sample: Sample, prediction: Any) -> Exception | None:
        return ValueError("a sampler failed") if sample.index == 1 else None

    harness.model.advance_one = advance_one  # type: ignore[method-assign]
    harness.submit(make_request(n=2))


def failed_with_all_others_in_their_step(harness: Harness) -> None:
    def advance(samples: Any, predictions: Any) -> list[Exception | None]:
        raise RuntimeError("a kernel failed")

    harness.model.advance = advance  # type: ignore[method-assign]
    harness.submit(make_request(n=2))


def failed_in_its_decoding(harness: Harness) -> None:
    def decode(samples: Any) -> list[Any]:
        raise ValueError("the latents are not finite")

    harness.model.decode = decode  # type: ignore[method-assign]
    harness.submit(make_request(n=2))


def cancelled_while_it_steps(harness: Harness) -> None:
    generation = harness.submit(make_request(steps=10, n=2))
    harness.loop.tick()
    harness.loop.cancel(generation)


def cancelled_before_its_picture(harness: Harness) -> None:
    generation = harness.submit(make_request(steps=1, n=9))
    harness.submit(make_request(steps=9))
    harness.loop.tick()
    assert harness.loop.decoding
    harness.loop.cancel(generation)


def out_of_time(harness: Harness) -> None:
    harness.submit(make_request(steps=100), seconds=20)
    harness.loop.tick()
    harness.clock.now += 21


def a_fault_of_the_loop(harness: Harness) -> None:
    harness.submit(make_request(n=2))
    harness.loop.tick()
    harness.loop.fail_all(RuntimeError("a fault of the loop"))


def a_release_that_fails(harness: Harness) -> None:
    release = harness.model.release

    def broken(sample: Sample) -> None:
        release(sample)
        raise RuntimeError("nobody knows")

    harness.model.release = broken  # type: ignore[method-assign]
    harness.submit(make_request(n=2))


@pytest.mark.parametrize(
    "way",
    [
        finished,
        failed_in_its_start,
        failed_in_a_pass,
        failed_in_its_step,
        failed_with_all_others_in_their_step,
        failed_in_its_decoding,
        cancelled_while_it_steps,
        cancelled_before_its_picture,
        out_of_time,
        a_fault_of_the_loop,
        a_release_that_fails,
    ],
)
def test_invariant_7_every_way_out_releases_a_sample_once(way: Callable[[Harness], None]) -> None:
    harness = Harness()
    way(harness)
    harness.finish()
    harness.loop.close()
    assert_released_once(harness.model)
    assert all(harness.ending(each) for each in harness.predicted)


def test_invariant_7_the_end_of_the_loop_releases_what_is_in_flight_once() -> None:
    harness = Harness()
    harness.submit(make_request(n=2))
    harness.loop.tick()
    harness.loop.close()
    assert_released_once(harness.model, 2)


def test_what_never_started_is_not_released() -> None:
    harness = Harness(max_rows=2)
    running_ = harness.submit(make_request(seed=1))
    waiting = harness.submit(make_request(seed=2))
    harness.loop.tick()
    harness.loop.cancel(waiting)
    harness.loop.cancel(running_)
    assert_released_once(harness.model)
    assert len(harness.model.started) == 1


def test_invariant_7_pictures_that_are_dropped_release_what_their_request_has_begun() -> None:
    harness = Harness(max_rows=2)
    several = harness.submit(make_request(steps=20, n=3), seconds=4.5)
    harness.submit(make_request(steps=20))
    harness.loop.tick()
    harness.model.slowdown = 3.0
    harness.finish()
    assert several.dropped == 2
    assert_released_once(harness.model, 2)


async def test_invariant_7_a_shutdown_releases_what_is_in_flight() -> None:
    model = GatedModel()
    async with running(model) as engine:
        warmed_up = len(model.started)
        model.gate.clear()
        events = engine.generate(make_request(steps=50), StreamOptions(), time_limit=1e6)
        await anext(events)
        await until(lambda: len(model.started) > warmed_up)
        (sample,) = list(model.started)[warmed_up:]
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)
        model.gate.set()
        await stopping
        await events.aclose()
    assert not sample.done
    assert model.released == dict.fromkeys(model.started, 1)


def test_the_warm_up_releases_its_samples() -> None:
    model = TimedModel(memory_rows=8)
    measure(model, MemoryGuard(), max_rows=0, clock=model.clock, report=lambda line: None)
    assert_started_are_released(model, 1 + 2 + 4 + 8 + 16)


def test_a_warm_up_without_memory_for_one_picture_releases_it() -> None:
    model = TimedModel(memory_rows=0)
    with pytest.raises(OutOfMemory):
        measure(model, MemoryGuard(), max_rows=0, clock=model.clock, report=lambda line: None)
    assert_started_are_released(model, 1)


def assert_started_are_released(model: TimedModel, samples: int) -> None:
    assert len(model.started) == samples
    assert model.released == model.started
