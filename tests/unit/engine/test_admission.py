"""Invariant 4: admission is bounded by predicted work, and refusals say when to come back."""

from __future__ import annotations

import statistics
from unittest.mock import Mock

import pytest

from tests.doubles import TimedModel, make_request
from tests.harness import NATIVE, Harness
from text2image.core.errors import DeadlineExceeded, Unavailable
from text2image.core.messages import Completed, Request
from text2image.engine.costs import StepCosts
from text2image.engine.sample import BatchKey, Generation


def fill_up(harness: Harness, request: Request) -> Unavailable:
    """Submits the request again and again until it is refused."""
    for _ in range(10_000):
        try:
            harness.submit(request)
        except Unavailable as refusal:
            return refusal
    raise AssertionError("nothing was ever refused")


def test_invariant_4_work_counts_not_requests() -> None:
    """Many small requests fit where few large ones do not."""
    small = Harness(max_seconds=10)
    for _ in range(50):
        small.submit(make_request(steps=4))
    large = Harness(max_seconds=10)
    refusal = fill_up(large, make_request(steps=150))
    assert refusal.reason == Unavailable.FULL
    assert large.backlog.samples() < 50


def test_invariant_4_a_refusal_carries_the_delay_after_which_it_would_be_admitted() -> None:
    harness = Harness(max_seconds=5)
    refusal = fill_up(harness, make_request(steps=50))
    assert refusal.retry_after is not None
    come_back = harness.clock() + refusal.retry_after
    while harness.clock() < come_back:
        harness.loop.tick()
    harness.submit(make_request(steps=50))


def test_invariant_4_a_refusal_tells_whether_a_smaller_request_would_be_refused_too() -> None:
    """It would where the wait alone is too long."""
    assert fill_up(Harness(max_seconds=5), make_request(steps=50)).anything
    harness = Harness()
    for _ in range(64):
        harness.submit(make_request(steps=50))
    predicted = harness.predicted[harness.submit(make_request(steps=50))]
    with pytest.raises(Unavailable) as refusal:
        harness.submit(make_request(steps=50), seconds=0.99 * predicted)
    assert not refusal.value.anything


def test_invariant_4_what_would_miss_its_deadline_behind_others_is_refused_at_once() -> None:
    harness = Harness()
    for _ in range(64):
        harness.submit(make_request(steps=50))
    with pytest.raises(Unavailable) as refusal:
        harness.submit(make_request(steps=20), seconds=5)
    assert refusal.value.reason == Unavailable.FULL


def test_invariant_4_what_no_idle_engine_could_do_in_time_is_no_reason_to_come_back() -> None:
    with pytest.raises(DeadlineExceeded, match="fewer steps"):
        Harness().submit(make_request(steps=150), seconds=1)


def test_invariant_4_a_refused_request_leaves_no_trace_in_the_account() -> None:
    harness = Harness(max_seconds=1)
    fill_up(harness, make_request(steps=50))
    harness.finish()
    assert harness.backlog.seconds() == 0
    assert harness.backlog.samples() == 0


def test_a_request_whose_admission_fails_leaves_no_trace_in_the_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = Harness()
    harness.submit()
    with monkeypatch.context() as patched:
        patched.setattr(StepCosts, "decode_seconds", Mock(side_effect=[0.0, RuntimeError("a bug")]))
        with pytest.raises(RuntimeError):
            harness.submit()
    assert harness.backlog.samples() == 1


@pytest.mark.parametrize("others", [0, 3, 15, 60])
def test_the_prediction_is_near_what_it_takes(others: int) -> None:
    harness = Harness(TimedModel())
    for _ in range(others):
        harness.submit(make_request(steps=20))
    before = harness.clock()
    generation = harness.submit(make_request(steps=20))
    while not generation.ended:
        harness.loop.tick()
    real = harness.clock() - before
    assert harness.predicted[generation] == pytest.approx(real, rel=0.3)


@pytest.mark.parametrize("in_flight", [16, 20, 48])
def test_the_prediction_is_near_what_it_takes_when_whoever_leaves_is_replaced(
    in_flight: int,
) -> None:
    """Else a crowd is refused while there are free rows, and batches are not full."""
    harness = Harness(TimedModel(max_rows=32))
    flying: dict[Generation, float] = {}
    ratios = []
    while len(ratios) < 200:
        if len(flying) < in_flight:
            # One at a time, so that they do not end at the same time for ever.
            flying[harness.submit(make_request(steps=20))] = harness.clock()
        harness.loop.tick()
        for generation in [each for each in flying if each.ended]:
            real = harness.clock() - flying.pop(generation)
            ratios.append(harness.predicted[generation] / real)
    assert 0.95 < statistics.median(ratios[100:]) < 1.25


@pytest.mark.parametrize("steps", [1, 4])
def test_the_prediction_for_few_steps_is_near_what_it_takes_among_many(steps: int) -> None:
    """The others finish as seldom as their own steps say, however soon this one does."""
    harness = Harness(TimedModel(decode_time=0.1, decode_chunk=1), max_rows=16)
    for seed in range(24):
        harness.submit(make_request(steps=50, seed=seed))
        harness.loop.tick()
    before = harness.clock()
    generation = harness.submit(make_request(steps=steps))
    while not generation.ended:
        harness.loop.tick()
    real = harness.clock() - before
    assert harness.predicted[generation] == pytest.approx(real, rel=0.3)


def test_predictions_follow_the_clock_where_steps_and_decoding_do_not_explain_it() -> None:
    class Sluggish(TimedModel):
        def start(self, samples):  # type: ignore[no-untyped-def]
            self.clock.now += 0.5 * len(samples)
            return super().start(samples)

    harness = Harness(Sluggish())
    for _ in range(60):
        harness.submit(make_request(steps=20))
    harness.finish()
    for _ in range(60):
        harness.submit(make_request(steps=20))
    before = harness.clock()
    generation = harness.submit(make_request(steps=20))
    harness.finish()
    real = harness.clock() - before
    assert harness.predicted[generation] == pytest.approx(real, rel=0.3)


def test_an_idle_engine_that_measured_itself_in_a_bad_hour_still_admits() -> None:
    """Else it would never find out that the hour is over."""
    harness = Harness()
    for _ in range(500):
        harness.costs.observe_step(NATIVE, 2, 5.0)
    generation = harness.submit(make_request(steps=20), seconds=10)
    harness.finish()
    assert isinstance(harness.ending(generation), Completed)
    assert harness.costs.seconds(NATIVE, 2) < 2.5, "it learned nothing from the steps it took"


def test_invariant_4_what_was_refused_in_a_crowd_is_admitted_some_time_after_it_has_left() -> None:
    """Although the engine was never idle in between, and nobody drew the size that would show how fast it is now."""
    harness = Harness(max_rows=16)
    large = make_request(steps=20, width=256, height=256)
    crowd = [
        harness.submit(make_request(steps=20, width=width, height=128))
        for width in range(128, 208, 8)
        for _ in range(24)
    ]
    one = harness.submit(large)
    while not one.ended:
        harness.loop.tick()
    harness.submit(make_request(steps=1000))
    for each in crowd:
        harness.loop.cancel(each)
    with pytest.raises(Unavailable):
        harness.submit(large, seconds=10)
    until = harness.clock() + 12
    while harness.clock() < until:
        harness.loop.tick()
    assert not harness.loop.idle
    generation = harness.submit(large, seconds=10)
    while not generation.ended:
        harness.loop.tick()
    assert isinstance(harness.ending(generation), Completed)


def test_an_owner_whose_weight_has_changed_keeps_the_new_one_when_older_work_leaves() -> None:
    def predicted(*, older: bool) -> float:
        harness = Harness()
        for _ in range(60):
            harness.submit(make_request(steps=20), owner="a")
        before = harness.submit(owner="raised", weight=1) if older else None
        for _ in range(60):
            harness.submit(make_request(steps=20), owner="raised", weight=9)
        if before is not None:
            harness.loop.cancel(before)
        newcomer = [harness.submit(make_request(steps=20), owner="b") for _ in range(9)][-1]
        return harness.predicted[newcomer]

    assert predicted(older=True) == pytest.approx(predicted(older=False))


@pytest.mark.parametrize("owners", [1, 100])
def test_admission_looks_a_size_up_as_often_for_many_owners_as_for_one(
    owners: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness()
    for number in range(100):
        harness.submit(make_request(steps=20), owner=f"owner {number % owners}")
    looked_up = 0

    def cap(costs: StepCosts, key: BatchKey) -> int:
        nonlocal looked_up
        looked_up += 1
        return original(costs, key)

    original = StepCosts.cap
    monkeypatch.setattr(StepCosts, "cap", cap)
    harness.submit(make_request(steps=20), owner="newcomer")
    assert looked_up <= 8
