"""Turns, costs, progress and ends follow what a family plans and sets anew on the way, and not `request.steps`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import NATIVE, Clock, TimedModel, make_request
from tests.harness import Harness
from tests.unit.engine.test_engine import running
from text2image.core.limits import MEGA
from text2image.core.messages import Completed, Progress, Request, Share, StreamOptions
from text2image.engine.costs import StepCosts
from text2image.engine.memory import MemoryGuard
from text2image.engine.sample import BatchKey, Generation, Plan, Sample
from text2image.engine.scheduler import BatchLimits, Scheduler
from text2image.engine.warmup import measure

BASE, REFINER = BatchKey("base"), BatchKey("refiner")


@dataclass
class Planned(TimedModel):
    """Follows plans that the test makes; `then` is the key after `switch` passes. Loads cost what they say."""

    passes: int | None = None
    guess: int | None = None
    load: float = 1.0
    switch: int = 10**9
    then: BatchKey = NATIVE
    keys: list[set[BatchKey]] = field(default_factory=list)

    def plan(self, request: Request) -> Plan:
        plan = super().plan(request)
        passes = self.guess or self.passes or plan.passes
        return replace(plan, passes=passes, load=self.load)

    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        self.keys.append({sample.key for sample in samples})
        loads = sum(sample.rows * (sample.load - 1) for sample in samples)
        self._take(loads * self.row_seconds)
        return super().predict(samples)

    def advance_one(self, sample: Sample, prediction: Any) -> Exception | None:
        failure = super().advance_one(sample, prediction)
        sample.done = sample.state == (self.passes or sample.steps)
        if sample.state == self.switch:
            sample.key, sample.rows, sample.load = self.then, 1, 2.0
        return failure


@dataclass
class Limited(TimedModel):
    """Takes the second of two rows in the middle third of the passes alone; the plan tells the mean."""

    def plan(self, request: Request) -> Plan:
        return replace(super().plan(request), rows=2, load=2 / 3)

    def start(self, samples: Sequence[Sample]) -> None:
        super().start(samples)
        for sample in samples:
            self._set_rows(sample)

    def advance_one(self, sample: Sample, prediction: Any) -> Exception | None:
        failure = super().advance_one(sample, prediction)
        self._set_rows(sample)
        return failure

    @staticmethod
    def _set_rows(sample: Sample) -> None:
        third = sample.passes // 3
        sample.rows, sample.load = (2 if third <= sample.state < 2 * third else 1), 1.0


def reported(harness: Harness, generation: Generation) -> list[tuple[int, int]]:
    events = [out for out in harness.outcomes[generation] if isinstance(out, Progress)]
    return [(event.step, event.steps) for event in events]


@pytest.mark.parametrize(
    ("steps", "passes", "every", "expected"),
    [
        (4, 4, 1, [1, 2, 3, 4]),
        (4, 7, 1, [1, 2, 3, 4]),
        (10, 3, 1, [3, 6, 10]),
        (10, 3, 5, [6, 10]),
        (7, 13, 3, [3, 6, 7]),
        (1, 2, 1, [1]),
    ],
)
def test_progress_counts_the_requests_steps_however_many_passes_they_take(
    steps: int, passes: int, every: int, expected: list[int]
) -> None:
    harness = Harness(Planned(passes=passes))
    options = StreamOptions(progress_every=every)
    generation = harness.submit(make_request(steps=steps), options=options)
    harness.finish()
    assert reported(harness, generation) == [(step, steps) for step in expected]
    assert len(harness.model.batches) == passes


@pytest.mark.parametrize("guess", [3, 12])
def test_the_model_alone_decides_when_a_sample_is_done(guess: int) -> None:
    harness = Harness(Planned(passes=6, guess=guess))
    generation = harness.submit(
        make_request(steps=6), options=StreamOptions(progress_every=1, preview_every=1)
    )
    harness.finish()
    assert isinstance(harness.ending(generation), Completed)
    assert len(harness.model.batches) == 6
    steps = [step for step, _ in reported(harness, generation)]
    assert steps == sorted(set(steps))
    assert steps[-1] == 6
    assert harness.backlog.seconds() == 0


def test_twice_as_many_passes_are_predicted_to_take_twice_as_long() -> None:
    short, long = Harness(Planned(passes=20)), Harness(Planned(passes=40))
    one, other = short.submit(make_request(steps=20)), long.submit(make_request(steps=20))
    short.finish()
    long.finish()
    assert short.predicted[one] == pytest.approx(short.clock(), rel=0.01)
    assert long.predicted[other] == pytest.approx(long.clock(), rel=0.01)


@pytest.mark.parametrize("others", [0, 10, 54])
def test_predictions_hold_for_rows_that_carry_a_load(others: int) -> None:
    harness = Harness(Planned(load=1.35))
    for _ in range(others):
        harness.submit(make_request(steps=20))
    before = harness.clock()
    generation = harness.submit(make_request(steps=20))
    while not generation.ended:
        harness.loop.tick()
    assert harness.predicted[generation] == pytest.approx(harness.clock() - before, rel=0.3)
    assert harness.costs.overhead == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("others", [0, 6, 40])
def test_predictions_hold_for_samples_whose_rows_come_and_go(others: int) -> None:
    harness = Harness(Limited())
    for _ in range(others):
        harness.submit(make_request(steps=30))
    before = harness.clock()
    generation = harness.submit(make_request(steps=30))
    while not generation.ended:
        harness.loop.tick()
    taken = harness.clock() - before
    assert 0.95 * taken <= harness.predicted[generation] <= 1.4 * taken
    assert harness.costs.overhead == pytest.approx(1.0, rel=0.05)
    harness.finish()
    assert harness.backlog.seconds() == 0


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_samples_whose_rows_grow_beyond_the_memory_take_turns_and_all_end(rows: int) -> None:
    harness = Harness(Limited(memory_rows=rows), max_rows=rows)
    generations = [harness.submit(make_request(steps=6, seed=seed)) for seed in range(7)]
    harness.finish()
    assert all(isinstance(harness.ending(each), Completed) for each in generations)
    assert harness.loop.counters["out_of_memory"] == 0
    assert harness.backlog.seconds() == 0
    assert harness.model.released == dict.fromkeys(harness.model.started, 1)


def test_costs_are_learned_from_the_rows_that_a_pass_had() -> None:
    harness = Harness(Limited(overhead=0.0))
    known = harness.costs.seconds(NATIVE, 2)
    for _ in range(40):
        harness.submit(make_request(steps=9))
        harness.finish()
    assert harness.costs.seconds(NATIVE, 2) == pytest.approx(known, rel=0.02)


async def test_the_pace_that_a_runner_tells_counts_passes_and_loads() -> None:
    async with running(Planned(passes=40, load=1.5)) as engine:
        assert engine._worker.backlog is not None
        row = engine._worker.backlog.pace(replace(NATIVE, model=engine.model.id), 1.0)
        megapixels = engine.model.width * engine.model.height / MEGA
        assert engine.status.pace == pytest.approx(2 * 1.5 * 40 / 20 * row / megapixels)


def test_costs_are_learned_by_load_so_that_plain_rows_seem_no_slower() -> None:
    points = {1: 0.1, 2: 0.2, 4: 0.4, 8: 0.8}
    costs = StepCosts(NATIVE, points, max_rows=64, decode_seconds=0.02)
    for _ in range(200):
        costs.observe_step(NATIVE, 4, 0.54, load=1.35)
    assert costs.seconds(NATIVE, 4) == pytest.approx(0.4, rel=0.01)


def test_rows_that_carry_a_load_fill_a_batch_sooner() -> None:
    harness = Harness(Planned(load=2.0), max_rows=8)
    for seed in range(8):
        harness.submit(make_request(seed=seed))
    harness.loop.tick()
    assert len(harness.model.batches[-1]) == 2


def test_memory_bounds_rows_whatever_they_carry() -> None:
    scheduler = Scheduler()
    for index in range(8):
        scheduler.add(make_sample(plan=Plan(BASE, 2, 4, load=0.1), seed=index))
    assert len(scheduler.select(lambda key: BatchLimits(start=100, fit=6))) == 3


def test_the_warm_up_measures_whatever_rows_and_loads_a_family_has() -> None:
    model = Planned(load=1.5)
    costs = measure(model, MemoryGuard(), max_rows=8, clock=model.clock, report=lambda line: None)
    taken = model.overhead + 6 * model.row_seconds
    assert costs.seconds(NATIVE, 6) == pytest.approx(taken), "four rows that carry 1.5 each"
    assert max(sum(each.rows for each in batch) for batch in model.batches) == 8


def test_a_sample_whose_key_changes_steps_with_those_of_its_new_one_and_ends_once() -> None:
    harness = Harness(Planned(switch=3, then=REFINER))
    generations = []
    for seed in range(6):
        generations.append(harness.submit(make_request(steps=6, seed=seed)))
        harness.loop.tick()
    harness.finish()
    assert all(isinstance(harness.ending(each), Completed) for each in generations)
    assert {frozenset(keys) for keys in harness.model.keys} == {
        frozenset({NATIVE}),
        frozenset({REFINER}),
    }
    assert max(len(batch) for batch in harness.model.batches if batch[0].key == REFINER) > 1
    assert {image.pixels.rgb[1] for each in generations for image in harness.images(each)} == {6}
    assert harness.backlog.seconds() == 0
    assert harness.model.released == dict.fromkeys(harness.model.started, 1)


def test_a_sample_whose_key_has_changed_can_be_cancelled() -> None:
    harness = Harness(Planned(switch=2, then=REFINER))
    generation = harness.submit(make_request(steps=9))
    for _ in range(4):
        harness.loop.tick()
    harness.loop.cancel(generation)
    assert harness.loop.counters["steps_saved"] == 5
    assert harness.backlog.samples() == 0
    assert harness.loop.idle


def make_sample(plan: Plan, owner: str = "", seed: int = 0) -> Sample:
    generation = Generation.create(
        make_request(seed=seed),
        StreamOptions(),
        plan=plan,
        now=0.0,
        deadline=1e9,
        share=Share(owner),
    )
    return generation.samples[0]


def test_who_moves_to_another_key_keeps_its_rows_before_those_that_wait_there() -> None:
    scheduler = Scheduler()
    moving = make_sample(Plan(BASE, 2, 4), "a")
    waiting = [make_sample(Plan(REFINER, 2, 4), "b") for _ in range(3)]
    for sample in (moving, *waiting):
        scheduler.add(sample)
    assert scheduler.select(lambda key: BatchLimits(2)) == [moving]
    moving.step, moving.key, moving.rows = 2, REFINER, 1
    scheduler.move(moving)
    assert BASE not in scheduler.queues
    assert scheduler.select(lambda key: BatchLimits(3)) == [moving, waiting[0]]
    scheduler.remove(moving)
    assert moving not in scheduler
    assert len(scheduler) == 3


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.booleans()), max_size=20))
def test_whatever_moves_between_keys_the_account_comes_out_even(
    shapes: list[tuple[int, int, bool]],
) -> None:
    """Each is charged for what it does in each key, so that nothing is left when all have gone."""
    scheduler, clock = Scheduler(), Clock()
    samples = [
        make_sample(Plan(BASE if base else REFINER, rows, passes, load=1.35), f"owner {passes % 3}")
        for rows, passes, base in shapes
    ]
    for sample in samples:
        scheduler.add(sample)
    while len(scheduler):
        batch = scheduler.select(lambda key: BatchLimits(5))
        key = batch[0].key
        clock.now += 1
        scheduler.charge(key, 1.0, clock.now, 1.0)
        for sample in batch:
            assert sample.key == key
            sample.step += 1
            sample.done = sample.step == sample.passes
            if sample.done:
                scheduler.remove(sample)
            elif sample.step % 2:
                sample.key = REFINER if key == BASE else BASE
                scheduler.move(sample)
    assert all(sample.done and sample.step == sample.passes for sample in samples)
    assert not scheduler.queues
    assert scheduler.waiting() == 0
