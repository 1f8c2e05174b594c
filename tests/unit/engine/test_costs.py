"""Invariant 8: the batch cap follows the hardware, per latent size, and memory bounds it."""

from __future__ import annotations

import sys
from itertools import pairwise
from random import Random
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import NATIVE, key_of
from text2image.engine.costs import (
    STEPS_BEFORE_RAISE,
    STEPS_BETWEEN_PROBES,
    Curve,
    StepCosts,
)


def make_costs(points: dict[int, float], max_rows: int = 64) -> StepCosts:
    return StepCosts(NATIVE, points, max_rows=max_rows, decode_seconds=0.02)


def step_in_full_batches(costs: StepCosts, truth: dict[int, float], steps: int) -> None:
    """Steps as often, with as many rows as may start; `truth` has the seconds that so many take."""
    for _ in range(steps):
        limits = costs.limits(NATIVE)
        rows = limits.start
        costs.observe_step(NATIVE, rows, truth[rows])


def test_invariant_8_the_cap_is_the_smallest_batch_within_two_percent_of_the_best() -> None:
    # Rows a second: 10, 19, 36, 62, 63.5, 64: 8 rows are 3 % short of the best, 16 are within 1 %.
    points = {1: 0.1, 2: 2 / 19, 4: 4 / 36, 8: 8 / 62, 16: 16 / 63.5, 32: 32 / 64}
    assert make_costs(points).cap(NATIVE) == 16


def test_invariant_8_a_device_that_gains_nothing_from_batches_gets_small_ones() -> None:
    points = {rows: 0.1 * rows for rows in (1, 2, 4, 8)}
    assert make_costs(points).cap(NATIVE) == 2


def test_invariant_8_the_cap_follows_what_later_steps_measure() -> None:
    costs = make_costs({1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1})
    assert costs.cap(NATIVE) == 8
    for _ in range(200):
        costs.observe_step(NATIVE, 8, 0.8)
        costs.observe_step(NATIVE, 4, 0.1)
    assert costs.cap(NATIVE) == 4


def test_invariant_8_each_size_has_its_own_cap() -> None:
    costs = make_costs({1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1, 16: 0.1})
    large = key_of(32, 32)
    assert costs.cap(large) == 4, "four times the pixels fill the device with a quarter of the rows"
    for _ in range(60 * STEPS_BETWEEN_PROBES):
        limits = costs.limits(large)
        for rows in (2, 4, limits.start):
            costs.observe_step(large, rows, 0.1 * rows)
    assert costs.cap(large) == 2
    assert costs.cap(NATIVE) == 16


def test_invariant_8_memory_bounds_the_cap_and_gives_it_back_slowly() -> None:
    costs = make_costs({1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1, 16: 0.1})
    costs.lower_cap(NATIVE, failed_rows=16)
    assert costs.cap(NATIVE) == 8
    for _ in range(STEPS_BEFORE_RAISE):
        costs.observe_step(NATIVE, 8, 0.1)
    assert costs.cap(NATIVE) == 10
    costs.lower_cap(NATIVE, failed_rows=3)
    assert costs.cap(NATIVE) == 2, "one guided sample must always fit"


def test_the_setting_is_a_cap_that_nothing_exceeds() -> None:
    assert make_costs({1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1}, max_rows=4).cap(NATIVE) == 4


@given(
    st.dictionaries(st.sampled_from([1, 2, 4, 8, 16, 32]), st.floats(1e-4, 10), min_size=1),
    st.floats(0.01, 200),
)
def test_predicted_step_times_are_positive_and_never_fall_below_the_grid(
    points: dict[int, float], rows: float
) -> None:
    assert Curve(points).at(rows) >= min(points.values()) * (1 - 1e-9)


def test_step_times_between_and_beyond_the_measured_sizes_follow_the_line() -> None:
    curve = Curve({2: 1.0, 4: 2.0})
    assert curve.at(3) == pytest.approx(1.5)
    assert curve.at(8) == pytest.approx(4.0)
    assert curve.at(1) == pytest.approx(1.0)


@given(st.integers(1, 40), st.floats(0.01, 5))
def test_learning_moves_the_prediction_towards_the_measurement(rows: int, seconds: float) -> None:
    curve = Curve({1: 0.1, 2: 0.12, 4: 0.2, 8: 0.35, 16: 0.7, 32: 1.4})
    for _ in range(2000):
        curve.learn(rows, seconds)
    if rows <= 32:
        assert curve.at(rows) == pytest.approx(seconds, rel=0.05)


def test_invariant_8_a_disturbed_first_measurement_does_not_stand_for_ever() -> None:
    """The device gains from batches of 8, but was busy with something else when they were measured."""
    costs = make_costs({1: 0.10, 2: 0.11, 4: 0.13, 8: 0.80})
    truth = {1: 0.10, 2: 0.11, 4: 0.13, 8: 0.17, 16: 0.34, 32: 0.68}
    assert costs.cap(NATIVE) == 4
    step_in_full_batches(costs, truth, 10 * STEPS_BETWEEN_PROBES)
    assert costs.cap(NATIVE) == 8


def test_invariant_8_a_warm_up_that_was_given_up_early_is_made_good_later() -> None:
    """The machine was so busy that one row took longer than a batch may, so larger ones were not measured."""
    costs = make_costs({1: 1.7})
    truth = {2: 0.11, 4: 0.13, 8: 0.17, 16: 0.33, 32: 0.66, 64: 1.32}
    step_in_full_batches(costs, truth, 20 * STEPS_BETWEEN_PROBES)
    assert costs.cap(NATIVE) == 8


def test_no_batch_is_tried_that_would_take_longer_than_a_step_may() -> None:
    costs = make_costs({1: 0.2, 2: 0.3, 4: 0.5, 8: 0.8})
    for _ in range(4 * STEPS_BETWEEN_PROBES):
        assert costs.limits(NATIVE).start <= 8
        costs.observe_step(NATIVE, 8, 0.8)


def test_invariant_8_a_device_that_slows_down_as_a_whole_keeps_its_cap() -> None:
    points = {1: 0.1, 2: 2 / 19, 4: 4 / 36, 8: 8 / 60, 16: 16 / 63, 32: 32 / 64}
    costs = make_costs(points)
    caps = set()
    for _ in range(3 * STEPS_BETWEEN_PROBES):
        rows = costs.cap(NATIVE)
        caps.add(rows)
        costs.observe_step(NATIVE, rows, 1.5 * points[rows])
    assert min(caps) >= 8
    assert costs.cap(NATIVE) == 16


def test_invariant_8_a_cap_does_not_go_to_and_fro_with_the_noise() -> None:
    """Two batches that differ by just what counts as good enough: either will do, but not in turns."""
    truth = {1: 0.5, 2: 0.6, 4: 0.8, 8: 1.2, 16: 16 / 9.8, 32: 32 / 10}
    truth = {rows: seconds / 100 for rows, seconds in truth.items()}
    changes = 0
    for seed in range(10):
        costs, random = make_costs(truth, max_rows=32), Random(seed)
        caps = []
        for _ in range(20 * STEPS_BETWEEN_PROBES):
            limits = costs.limits(NATIVE)
            rows = min(limits.start, limits.fit)
            costs.observe_step(NATIVE, rows, truth[rows] * random.lognormvariate(0, 0.03))
            caps.append(costs.cap(NATIVE))
        assert set(caps) <= {16, 32}
        changes += sum(before != after for before, after in pairwise(caps))
    assert changes <= 10, "without a margin there are a hundred"


def test_invariant_8_a_crowd_finds_the_cap_that_was_right_before_a_quiet_time() -> None:
    """Half of what the cap allows is in line, again and again, and the device becomes faster meanwhile."""
    truth = {1: 0.5, 2: 0.6, 4: 0.8, 8: 1.2, 16: 16 / 9.6, 32: 32 / 10}
    costs = make_costs(truth, max_rows=32)
    for speed in (1.0, 1.2):
        for _ in range(300):
            costs.observe_step(NATIVE, 16, truth[16] / speed)
    assert costs.cap(NATIVE) == 32
    assert costs.seconds(NATIVE, 32) == pytest.approx(truth[32] / 1.2, rel=0.03)


def test_invariant_8_probes_are_rare_and_keep_within_what_fits() -> None:
    costs = make_costs({1: 0.1, 2: 0.1, 4: 0.1, 8: 0.8})
    costs.lower_cap(NATIVE, failed_rows=12)
    probed = [costs.limits(NATIVE) for _ in range(20 * STEPS_BETWEEN_PROBES)]
    rows = [min(limits.start, limits.fit) for limits in probed]
    assert set(rows) == {4, 6}
    assert rows.count(6) <= 20


def test_a_size_that_has_not_stepped_follows_what_the_native_one_learns() -> None:
    costs = make_costs({1: 0.1, 2: 0.11, 4: 0.13, 8: 0.17})
    larger, turned = key_of(16, 32), key_of(32, 16)
    before, cap = costs.seconds(larger, 2), costs.cap(NATIVE)
    for _ in range(200):
        costs.observe_step(NATIVE, 8, 1.7)
        costs.observe_step(NATIVE, 1, 0.2)
    assert costs.seconds(larger, 2) > 2 * before
    assert costs.cap(NATIVE) < cap
    assert costs.seconds(turned, 2) == costs.seconds(larger, 2)


def test_two_sizes_of_one_area_learn_apart() -> None:
    costs = make_costs({1: 0.1, 2: 0.11, 4: 0.13, 8: 0.17})
    wide, tall = key_of(16, 32), key_of(32, 16)
    before = costs.seconds(wide, 4)
    costs.observe_step(tall, 4, 10 * before)
    assert costs.seconds(tall, 4) > costs.seconds(wide, 4) == before


def test_who_reads_a_curve_while_it_learns_sees_it_before_or_after() -> None:
    """The event loop reads what the engine's thread grows: here it reads after every line of the learning."""
    curve = Curve({1: 0.1, 2: 0.2})
    read: list[tuple[float, ...]] = []

    def reading() -> tuple[float, ...]:
        return tuple(curve.at(rows) for rows in (1, 3, 6, 16))

    def trace(frame: FrameType, event: str, argument: object) -> object:
        if frame.f_code.co_filename != learning.co_filename:
            return None
        if event == "line":
            read.append(reading())
        return trace

    learning = Curve.learn.__code__
    before, others = reading(), sys.gettrace()
    sys.settrace(trace)
    try:
        curve.learn(8, 0.4)
    finally:
        sys.settrace(others)
    assert len(read) > 3
    assert set(read) == {before, reading()}
