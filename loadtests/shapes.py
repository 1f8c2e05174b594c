"""How many users there are as a run goes on: steps, a ramp, a spike, or a soak; `--shape` names one.

Each takes its peak from `--users` and its length from `--run-time`. Plain arithmetic: importing Locust would patch the
whole process for its greenlets.
"""

from __future__ import annotations

import math
from collections.abc import Callable

LEVELS = 5
# The spike: so much of the users before and after it, and the part of the run that it lasts.
CALM = 0.1
SPIKE = (0.4, 0.6)
# The part of a soak in which its users come.
SOAK_RAMP = 0.05


def steps(passed: float, peak: int) -> int:
    """Five levels of equal length, the last of them the peak. `passed` is the share of the run that has passed."""
    return math.ceil(peak * min(LEVELS, math.floor(passed * LEVELS) + 1) / LEVELS)


def ramp(passed: float, peak: int) -> int:
    """From one user to the peak, evenly."""
    return max(1, round(peak * passed))


def spike(passed: float, peak: int) -> int:
    """A tenth of the peak, all of it at once in the fifth in the middle, and a tenth again."""
    begin, end = SPIKE
    return peak if begin <= passed < end else max(1, round(CALM * peak))


def soak(passed: float, peak: int) -> int:
    """The peak, reached gently, and held."""
    return max(1, round(peak * min(1.0, passed / SOAK_RAMP)))


SHAPES: dict[str, Callable[[float, int], int]] = {
    "steps": steps,
    "ramp": ramp,
    "spike": spike,
    "soak": soak,
}
