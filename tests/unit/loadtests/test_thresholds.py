"""A run fails when it breaks a limit that somebody set, and says which; one without answers keeps none."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from loadtests.figures import Level, broken
from loadtests.thresholds import Thresholds
from tests.unit.loadtests.canned import run_of


@dataclass
class Counted:
    """What Locust counts: twenty requests in a second, of which one failed and one took 2 s."""

    num_requests: int = 20
    fail_ratio: float = 0.05
    total_rps: float = 20.0
    total_fail_per_sec: float = 1.0

    def get_response_time_percentile(self, percent: float) -> float:
        return 100 if percent <= 0.95 else 2000


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_failures": 0.05}, ""),
        ({"max_failures": 0.04}, "5.0% of the requests failed"),
        ({"max_p95": 2.5}, ""),
        ({"max_p95": 0.05}, "95 % were answered within 0.10 s"),
        ({"min_rate": 19}, ""),
        ({"min_rate": 20}, "19.00 pictures/s were drawn"),
    ],
)
def test_each_limit_is_kept_or_told(limits: dict[str, float], told: str) -> None:
    lines = Thresholds(**limits).broken(Counted())
    assert [told in line for line in lines] == ([True] if told else [])


def test_without_an_answer_nothing_is_kept() -> None:
    assert Thresholds(max_failures=1).broken(Counted(num_requests=0)) == ["no request was answered"]


def test_without_limits_nothing_is_asked() -> None:
    assert not Thresholds().any
    assert Thresholds(max_failures=0).any


def test_a_report_names_each_level_that_broke_a_limit() -> None:
    levels = [
        Level("HTTP", 1, run_of(1.0, 1.0), None),
        Level("HTTP", 5, run_of(1.0, 3.0), None),
        Level("gRPC", 5, run_of(1.0, failed=1), None),
        Level("gRPC", 10, run_of(), None),
    ]
    assert broken(levels, max_failures=0.0, max_p95=2.0) == [
        "5 users over HTTP: 95 % were answered within 3.00 s; 2 s are the limit",
        "5 users over gRPC: 50.0% failed; at most 0.0% may",
        "10 users over gRPC: no request was answered",
    ]
    assert broken(levels[:3], max_failures=0.5) == []
