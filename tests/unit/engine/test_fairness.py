"""Owners and sizes get their share of the device, and nobody waits for ever, whatever the others send."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles import TimedModel, key_of, make_request
from tests.harness import NATIVE, Harness
from text2image.core.errors import Unavailable
from text2image.core.messages import Share, StreamOptions
from text2image.engine.sample import BatchKey, Generation, Plan, Sample
from text2image.engine.scheduler import BatchLimits, Scheduler

SIZES = [key_of(8, 8), NATIVE, key_of(32, 32)]
OVERHEAD = 64


def make_sample(
    owner: str = "", *, weight: int = 1, key: BatchKey = NATIVE, rows: int = 2, steps: int = 4
) -> Sample:
    generation = Generation.create(
        make_request(steps=steps),
        StreamOptions(),
        plan=Plan(key, rows, steps),
        now=0.0,
        deadline=1e9,
        share=Share(owner, weight),
    )
    return generation.samples[0]


@dataclass
class Device:
    """Steps what the scheduler chooses, in time that grows with rows and area, and keeps the account."""

    cap: int = 8
    scheduler: Scheduler = field(default_factory=Scheduler)
    begun: list[Sample] = field(default_factory=list)
    row_steps: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    now: float = 0.0

    def add(self, sample: Sample) -> Sample:
        self.scheduler.add(sample)
        return sample

    def step(self) -> list[Sample]:
        batch = self.scheduler.select(lambda key: BatchLimits(self.cap))
        rows, key = sum(sample.rows for sample in batch), batch[0].key
        seconds = float(OVERHEAD + rows * key.size)
        for sample in batch:
            if sample.step == 0:
                self.begun.append(sample)
            sample.step += 1
            sample.done = sample.step == sample.passes
            self.row_steps[sample.owner] += sample.rows
            self.seconds[sample.owner] += seconds * sample.rows / rows
        self.now += seconds
        alone = float(OVERHEAD + batch[0].rows * key.size)
        self.scheduler.charge(key, seconds, self.now, alone)
        for sample in batch:
            if sample.remaining == 0:
                self.scheduler.remove(sample)
        return batch

    def keep_busy(self, steps: int, *owners: Callable[[], Sample]) -> None:
        """Takes so many steps while every owner always has samples waiting."""
        lines: list[deque[Sample]] = [deque() for _ in owners]
        for _ in range(steps):
            for line, make in zip(lines, owners, strict=True):
                while line and line[0].step:
                    line.popleft()
                while len(line) < 2 * self.cap:
                    line.append(self.add(make()))
            self.step()


shapes = st.tuples(st.sampled_from(SIZES), st.integers(1, 2), st.integers(1, 20))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 9), shapes), min_size=1, max_size=4), shapes)
def test_nobody_starves_whatever_the_others_send(
    others: list[tuple[int, tuple[BatchKey, int, int]]], shape: tuple[BatchKey, int, int]
) -> None:
    """All others always have more waiting and weigh more; steps of the largest size take 64 times the smallest's."""

    def maker(number: int, weight: int, shape: tuple[BatchKey, int, int]) -> Callable[[], Sample]:
        key, rows, steps = shape
        return lambda: make_sample(
            f"other {number}", weight=weight, key=key, rows=rows, steps=steps
        )

    makers = [maker(number, *other) for number, other in enumerate(others)]
    device = Device()
    device.keep_busy(50, *makers)
    key, rows, steps = shape
    one = device.add(make_sample("one", key=key, rows=rows, steps=steps))
    for _ in range(5000):
        if one not in device.scheduler:
            return
        for make in makers:
            device.add(make())
        device.step()
    raise AssertionError("it starves")


@settings(max_examples=40)
@given(st.data(), st.integers(1, 8), st.integers(1, 8), st.sampled_from([2, 5, 8, 16]))
def test_two_owners_who_always_wait_get_shares_in_proportion_to_their_weights(
    data: st.DataObject, a: int, b: int, cap: int
) -> None:
    """Of the work begun they are never further apart than one sample each; of the steps taken, one batch more."""
    most_steps = 12
    shape = st.tuples(st.integers(1, 2), st.integers(1, most_steps))
    device = Device(cap)
    mixes = {owner: data.draw(st.lists(shape, min_size=1, max_size=3)) for owner in "ab"}
    turns = dict.fromkeys("ab", 0)

    def maker(owner: str, weight: int) -> Callable[[], Sample]:
        def make() -> Sample:
            turns[owner] += 1
            rows, steps = mixes[owner][turns[owner] % len(mixes[owner])]
            return make_sample(owner, weight=weight, rows=rows, steps=steps)

        return make

    device.keep_busy(300, maker("a", a), maker("b", b))
    begun = Counter[str]()
    for sample in device.begun:
        begun[sample.owner] += sample.rows * sample.steps
        apart = abs(begun["a"] / a - begun["b"] / b)
        assert apart <= 2 * most_steps / a + 2 * most_steps / b + 1e-6
    batch = cap * most_steps
    apart = abs(device.row_steps["a"] / a - device.row_steps["b"] / b)
    assert apart <= (2 * most_steps + batch) / a + (2 * most_steps + batch) / b


def test_sizes_that_come_anew_for_each_picture_do_not_keep_another_from_its_turns() -> None:
    device = Device()
    one = device.add(make_sample("one", steps=20))
    fickle: dict[BatchKey, Sample] = {}
    for _ in range(100):
        for key in (key_of(8, 8), key_of(8, 16)):
            if key not in fickle or fickle[key].step:
                fickle[key] = device.add(make_sample("fickle", key=key, steps=1))
        device.step()
    assert one.step == 20


@pytest.mark.parametrize("in_line", [4, 8])
def test_a_stream_of_new_owners_does_not_overtake_anothers_second_picture_for_ever(
    in_line: int,
) -> None:
    device = Device()
    several = [device.add(make_sample("several", steps=20)) for _ in range(4)]
    line: list[Sample] = []
    for number in range(500):
        line = [sample for sample in line if not sample.step]
        while len(line) < in_line:
            line.append(device.add(make_sample(f"new {number}.{len(line)}", steps=20)))
        device.step()
    assert all(sample.step == 20 for sample in several)


def test_weights_hold_across_sizes_too() -> None:
    device = Device()
    small, large = SIZES[0], SIZES[2]
    device.keep_busy(
        2000,
        lambda: make_sample("light", weight=1, key=small),
        lambda: make_sample("heavy", weight=4, key=large),
    )
    assert device.seconds["heavy"] / device.seconds["light"] == pytest.approx(4, rel=0.1)


def test_an_owner_gets_no_more_by_sending_many_sizes() -> None:
    device = Device()
    sizes = iter(range(10**9))
    device.keep_busy(
        3000,
        lambda: make_sample("many", key=key_of(16, 8 + next(sizes) % 50)),
        lambda: make_sample("one"),
    )
    assert device.seconds["one"] >= 0.45 * device.seconds.total()


def test_one_request_behind_a_thousand_of_another_is_the_next_to_begin() -> None:
    device = Device()
    for number in range(1000):
        device.add(make_sample("a", steps=10 + number % 7))
    for _ in range(25):
        device.step()
    one = device.add(make_sample("b"))
    before = len(device.begun)
    for _ in range(16):
        device.step()
    assert device.begun[before] is one


def test_who_was_away_has_saved_up_no_claim() -> None:
    device = Device(cap=2)
    device.add(make_sample("away", steps=1))
    device.keep_busy(500, lambda: make_sample("busy"))
    before = len(device.begun)
    for _ in range(50):
        device.add(make_sample("away"))
    device.keep_busy(80, lambda: make_sample("busy"))
    owners = Counter(sample.owner for sample in device.begun[before:])
    assert owners["busy"] >= 9
    assert owners["away"] >= 9


def test_what_a_cancelled_sample_left_undone_costs_its_owner_nothing() -> None:
    device = Device(cap=2)
    for _ in range(20):
        device.add(make_sample("other"))
    dear = device.add(make_sample("fickle", steps=1000))
    while dear.step == 0:
        device.step()
    patient = device.add(make_sample("fickle"))
    device.scheduler.remove(dear)
    before = len(device.begun)
    while patient.step == 0:
        device.step()
    assert len(device.begun) - before <= 3


@given(
    st.lists(st.tuples(st.integers(1, 2), st.integers(1, 9)), min_size=1, max_size=30), st.data()
)
def test_one_owner_alone_is_served_in_order_of_admission(
    shapes: list[tuple[int, int]], data: st.DataObject
) -> None:
    device = Device()
    samples = [device.add(make_sample(rows=rows, steps=steps)) for rows, steps in shapes]
    while len(device.scheduler):
        device.cap = data.draw(st.integers(2, 9))
        device.step()
    assert device.begun == samples


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(2, 9)), min_size=2, max_size=20))
def test_one_that_has_begun_steps_each_time_until_its_last(shapes: list[tuple[int, int]]) -> None:
    device = Device(cap=5)
    for number, (rows, steps) in enumerate(shapes):
        device.add(make_sample(f"owner {number % 3}", rows=rows, steps=steps))
    stepping: set[Sample] = set()
    while len(device.scheduler):
        batch = device.step()
        assert stepping <= set(batch), "it lost its rows to another"
        stepping = {sample for sample in batch if sample.remaining}


def fill_line(harness: Harness, owner: str, **asked: object) -> Unavailable:
    for _ in range(5000):
        try:
            harness.submit(make_request(**asked), owner=owner)  # type: ignore[arg-type]
        except Unavailable as refusal:
            return refusal
    raise AssertionError("nothing was ever refused")


def test_invariant_4_an_owner_that_fills_the_line_is_refused_and_the_others_are_not() -> None:
    harness = Harness(max_seconds=60)
    fill_line(harness, "a", steps=20)
    long = harness.backlog.samples()
    assert long > 100
    for number in range(20):
        harness.submit(make_request(steps=20), owner=f"newcomer {number}", seconds=60)
    refusal = fill_line(harness, "b", steps=20)
    assert refusal.reason == Unavailable.FULL
    line = Counter(generation.share.owner for generation in harness.outcomes | harness.predicted)
    assert line["b"] < line["a"]


def test_invariant_4_the_bound_is_on_what_an_owner_waits_in_its_own_share() -> None:
    """Whoever comes to nine others may have a tenth of the work in line that the first could have alone."""
    harness = Harness(max_seconds=60)
    for number in range(10):
        fill_line(harness, f"owner {number}", steps=20)
    lines = Counter(generation.share.owner for generation in harness.predicted)
    assert lines["owner 0"] // 10 <= lines["owner 9"] <= lines["owner 0"] / 8


def test_the_prediction_for_a_newcomer_holds_while_another_has_a_thousand_in_line() -> None:
    harness = Harness()
    for _ in range(1000):
        harness.submit(make_request(steps=20), owner="a")
    for _ in range(30):
        harness.loop.tick()
    before = harness.clock()
    one = harness.submit(make_request(steps=20), owner="b")
    while not one.ended:
        harness.loop.tick()
    assert harness.predicted[one] == pytest.approx(harness.clock() - before, rel=0.3)


def test_a_large_picture_is_not_kept_by_a_thousand_small_ones() -> None:
    harness = Harness(TimedModel(row_seconds=0.005), max_rows=16)
    for _ in range(1000):
        harness.submit(make_request(steps=20))
    for _ in range(30):
        harness.loop.tick()
    before = harness.clock()
    one = harness.submit(make_request(steps=20, width=256, height=256))
    while not one.ended:
        harness.loop.tick()
    alone = 20 * (harness.model.overhead + 8 * harness.model.row_seconds)
    assert harness.clock() - before < 8 * alone
