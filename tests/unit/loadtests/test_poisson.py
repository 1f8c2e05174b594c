"""The search for the highest rate finds it, and measures no rate twice."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import poisson
from loadtests.drivers import Answer, Run
from loadtests.poisson import SHARES, after_warm_up, highest, measure_turn, within, yardsticks
from tests.unit.loadtests.canned import run_of


@given(st.lists(st.floats(0.1, 2.0), min_size=1, unique=True).map(sorted), st.floats(0.0, 2.1))
async def test_the_highest_share_that_holds_is_found_and_none_is_asked_for_twice(
    shares: list[float], limit: float
) -> None:
    asked: Counter[float] = Counter()

    async def holds(share: float) -> bool:
        asked[share] += 1
        return share <= limit

    expected = max((share for share in shares if share <= limit), default=None)
    assert await highest(shares, holds) == expected
    assert set(asked.values()) == {1}
    assert asked.total() <= 1 + math.ceil(math.log2(len(shares) + 1))


async def test_the_rate_that_is_hoped_for_is_asked_for_first() -> None:
    asked = []

    async def holds(share: float) -> bool:
        asked.append(share)
        return True

    assert await highest(SHARES, holds) == SHARES[-1]
    assert asked == [SHARES[-1]]


def test_what_fails_or_is_late_is_not_within_the_bound() -> None:
    assert within(run_of(1.0, 2.0, 3.0, failed=1), 2.0) == 0.5
    assert within(run_of(*[1.0] * 99, refused=1), 2.0) == 0.99
    assert within(Run([], 1.0), 2.0) == 0.0


def test_what_was_sent_while_the_queue_was_still_short_does_not_count() -> None:
    run = after_warm_up(run_of(*range(10)), 10.0)
    assert [answer.sent for answer in run.answers] == list(range(2, 10))


async def test_both_bounds_are_searched_for_in_the_same_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offered: list[float] = []

    async def open_loop(call: Any, *, rate: float, seconds: float, **_: Any) -> Run:
        offered.append(rate)
        # 9 times a lone picture's time at 80 % of saturation, 15 times at 90 %, 30 times above.
        latency = 4.5 if rate <= 8.0 else 7.5 if rate <= 9.0 else 15.0
        return Run([Answer(at, at + latency, ok=True) for at in range(int(seconds))], seconds)

    monkeypatch.setattr(poisson, "open_loop", open_loop)
    turn: dict[str, Any] = {"lone": 0.5, "saturation": 10.0}
    await measure_turn(lambda seed, steps: open_loop, turn, seconds=10, seed=0)  # type: ignore[arg-type]
    assert turn["highest"] == {"20": 0.9, "10": 0.8}
    assert len(offered) == len(set(offered)) == len(turn["runs"])
    assert turn["runs"]["0.8"]["p99"] == 4.5


def test_a_turn_in_which_no_rate_holds_counts_as_none() -> None:
    turns = [{"highest": {"20": 0.95, "10": share}} for share in (None, 0.8, 0.9)]
    rows = {name: value for name, value, _ in yardsticks({"turns": turns})}
    assert [*rows.values()] == ["0.95 (0.95 to 0.95)", "0.80 (0.00 to 0.90)"]


def test_the_page_says_which_rate_held_in_each_turn() -> None:
    run = {"requests": 40, "success": 1.0, "p50": 0.5, "p95": 1.0, "p99": 2.0}
    turn = {
        "lone": 0.5,
        "saturation": 5.0,
        "runs": {"0.99": run, "0.5": run},
        "highest": {"20": 0.99, "10": None},
    }
    told = poisson.text({"seconds": 45.0, "turns": [turn]})
    assert "| 1 | 0.50 | 5.00 | 0.99 | below 0.50 |" in told
    assert told.index("| 1 | 50% |") < told.index("| 1 | 99% |")
