"""Users come and go in the shape that a run was given: never none, and never more than its peak."""

from __future__ import annotations

import pytest

from loadtests.shapes import SHAPES

PEAK = 50


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("peak", [1, 3, PEAK])
def test_there_is_always_somebody_and_the_peak_is_reached(name: str, peak: int) -> None:
    users = [SHAPES[name](moment / 1000, peak) for moment in range(1000)]
    assert min(users) >= 1
    assert max(users) == peak


def test_steps_are_five_levels_of_equal_length() -> None:
    users = [SHAPES["steps"](moment / 100, PEAK) for moment in range(100)]
    assert users == [10] * 20 + [20] * 20 + [30] * 20 + [40] * 20 + [50] * 20


def test_a_ramp_never_falls() -> None:
    users = [SHAPES["ramp"](moment / 100, PEAK) for moment in range(100)]
    assert users == sorted(users)
    assert users[50] == PEAK / 2


def test_a_spike_comes_and_goes_at_once() -> None:
    users = [SHAPES["spike"](moment / 100, PEAK) for moment in range(100)]
    assert users == [5] * 40 + [50] * 20 + [5] * 40


def test_a_soak_holds_its_peak_for_nearly_all_of_the_run() -> None:
    users = [SHAPES["soak"](moment / 100, PEAK) for moment in range(100)]
    assert set(users[5:]) == {PEAK}
    assert users[1] < PEAK
