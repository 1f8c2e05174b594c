"""What a run must keep for its exit status to be 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Total(Protocol):
    """What Locust counted of all requests."""

    num_requests: int
    fail_ratio: float
    total_rps: float
    total_fail_per_sec: float

    def get_response_time_percentile(self, percent: float) -> float:
        """In milliseconds; `percent` is 0 to 1."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Limits on a run; None for those that nobody set.

    Attributes:
        max_failures: the largest share of requests, 0 to 1, that may end without a picture.
        max_p95: the longest 95th percentile of the response time, in seconds.
        min_rate: the fewest pictures per second.
    """

    max_failures: float | None = None
    max_p95: float | None = None
    min_rate: float | None = None

    @property
    def any(self) -> bool:
        """Whether anything is asked of a run."""
        return (self.max_failures, self.max_p95, self.min_rate) != (None, None, None)

    def broken(self, total: Total) -> list[str]:
        """What a run did not keep, a line each. One without a single answer has kept nothing."""
        if not total.num_requests:
            return ["no request was answered"]
        rate = total.total_rps - total.total_fail_per_sec
        p95 = total.get_response_time_percentile(0.95) / 1000
        lines = []
        if total.fail_ratio > _or(self.max_failures, math.inf):
            lines.append(
                f"{total.fail_ratio:.1%} of the requests failed; at most {self.max_failures:.1%} may"
            )
        if p95 > _or(self.max_p95, math.inf):
            lines.append(f"95 % were answered within {p95:.2f} s; {self.max_p95:g} s are the limit")
        if rate < _or(self.min_rate, 0.0):
            lines.append(f"{rate:.2f} pictures/s were drawn; at least {self.min_rate:g} must be")
        return lines


def _or(limit: float | None, otherwise: float) -> float:
    return otherwise if limit is None else limit
