"""What a balancer is told a process has answered in the last seconds."""

from __future__ import annotations

import pytest

from text2image.observe.rates import WINDOW, Rates


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rates_are_those_of_the_last_seconds() -> None:
    clock = Clock()
    rates = Rates(clock)
    assert rates.per_second() == (0, 0)
    for failed in (False, False, True):
        rates.count(failed=failed)
    # Nothing is known of the time before it began.
    assert rates.per_second() == (3, 1)
    clock.now += WINDOW / 2
    rates.count(failed=False)
    assert rates.per_second() == pytest.approx((4 / (WINDOW / 2), 1 / (WINDOW / 2)))
    clock.now += WINDOW / 2
    assert rates.per_second() == pytest.approx((1 / WINDOW, 0))
    clock.now += WINDOW
    assert rates.per_second() == (0, 0)
