"""What a runner tells of its steps, its queue and its device."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from tests.doubles import NATIVE, TimedModel, make_info, make_request
from text2image.core.messages import Counters, GeneratedImage, State, Status, StreamOptions
from text2image.engine.admission import Backlog
from text2image.engine.costs import StepCosts
from text2image.engine.loop import Outcome, StepLoop
from text2image.engine.memory import MemoryReading
from text2image.engine.sample import Generation, Sample
from text2image.runner.metrics import RunnerMetrics

ENCODE_SECONDS = 0.5
CAP = 8


class Reader(TimedModel):
    """A model that takes its time for prompts."""

    def encode(self, samples: Sequence[Sample]) -> list[str]:
        self.clock.now += ENCODE_SECONDS
        return super().encode(samples)


class Measured:
    """A step loop of a timed model, and what is told of it."""

    def __init__(self, model: TimedModel) -> None:
        points = {rows: model.overhead + rows * model.row_seconds for rows in (1, 2, 4, CAP)}
        costs = StepCosts(NATIVE, points, max_rows=CAP, decode_seconds=model.decode_time)
        self.model = model
        self.registry = CollectorRegistry()
        self.metrics = RunnerMetrics(0, self.registry)
        self.backlog = Backlog(costs, 1e9)
        self.told: list[Outcome] = []
        self.loop = StepLoop(
            model,
            costs,
            self.backlog,
            clock=model.clock,
            emit=lambda _, outcome: self.told.append(outcome),
            observer=self.metrics,
        )

    def submit(self, pictures: int, steps: int = 4) -> Generation:
        request = make_request(n=pictures, steps=steps)
        now = self.model.clock()
        generation = Generation.create(
            request, StreamOptions(), plan=self.model.plan(request), now=now, deadline=now + 1e6
        )
        self.backlog.admit(generation)
        self.loop.add(generation)
        return generation

    def finish(self) -> None:
        while not self.loop.idle:
            self.loop.tick()

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"text2image_{name}", labels)


def test_each_step_tells_how_full_its_batch_was() -> None:
    measured = Measured(TimedModel())
    measured.submit(1, steps=2)
    measured.finish()
    assert measured.value("batch_occupancy_count") == 2
    assert measured.value("batch_occupancy_sum") == pytest.approx(2 * 2 / CAP)
    measured.submit(5, steps=1)
    measured.loop.tick()
    assert measured.value("batch_occupancy_sum") == pytest.approx(2 * 2 / CAP + 1)


def test_a_pictures_time_is_told_by_stage_and_nothing_of_it_twice() -> None:
    measured = Measured(Reader())
    measured.submit(1)
    measured.model.clock.now += 3
    measured.finish()
    (image,) = (each for each in measured.told if isinstance(each, GeneratedImage))
    assert image.timings.queued == pytest.approx(3)
    assert image.timings.encoding == pytest.approx(ENCODE_SECONDS)
    assert image.timings.total == pytest.approx(measured.model.clock())
    for stage in ("queued", "encoding", "denoising", "decoding"):
        told = measured.value("stage_seconds_sum", stage=stage)
        assert told == pytest.approx(getattr(image.timings, stage))


def test_the_queue_is_what_has_not_taken_a_step() -> None:
    measured = Measured(TimedModel())
    first, second = measured.submit(4), measured.submit(3)
    assert measured.backlog.waiting() == 7
    measured.loop.tick()
    assert (measured.backlog.waiting(), measured.backlog.samples()) == (3, 7)
    measured.loop.cancel(first)
    measured.loop.cancel(second)
    assert measured.backlog.waiting() == 0
    measured.submit(6)
    measured.finish()
    assert measured.backlog.waiting() == 0


def test_a_batch_without_room_is_counted() -> None:
    measured = Measured(TimedModel(memory_rows=4))
    measured.submit(4, steps=1)
    measured.finish()
    assert measured.loop.counters["out_of_memory"] == 1


def test_an_engines_counters_are_taken_over_once() -> None:
    measured = Measured(TimedModel())
    for saved in (5, 5, 8):
        counters = Counters(steps_saved=saved)
        measured.metrics.update(Status(state=State.READY, counters=counters), 2, None)
    assert measured.value("engine_steps_saved_total") == 8
    assert measured.value("waiting_samples") == 2


def test_a_runner_tells_its_state_its_model_and_its_memory() -> None:
    measured = Measured(TimedModel())
    measured.metrics.update(Status(state=State.LOADING), 0, None)
    assert measured.value("runner_state", runner="0", state="loading") == 1
    assert measured.value("device_memory_free_bytes", runner="0") is None
    measured.metrics.serves(make_info(id="sd", revision="7"))
    measured.metrics.update(Status(state=State.READY), 0, MemoryReading(free=3, used=4))
    assert measured.value("runner_state", runner="0", state="loading") == 0
    assert measured.value("runner_state", runner="0", state="ready") == 1
    assert measured.value("device_memory_free_bytes", runner="0") == 3
    assert measured.value("device_memory_used_bytes", runner="0") == 4
    labels = {"model": "sd", "revision": "7", "device": "cpu", "dtype": "float32"}
    assert measured.value("model_info", **labels) == 1
    assert measured.value("starts_total", role="runner") == 1
