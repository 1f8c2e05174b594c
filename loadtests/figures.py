"""What a load run measures: levels of users who wait for their answers, and arrivals that wait for nobody."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtests.drivers import Run

PERCENTILES = (50, 95, 99)
# The fewest users who bring this share of the highest rate keep the server busy.
SATURATED = 0.9


@dataclass(frozen=True, slots=True)
class Level:
    """So many users at once over one transport, each asking for the next picture when it has the last.

    `rows` is the mean of rows in a forward pass, None where the server did not show its metrics.
    """

    transport: str
    users: int
    run: Run
    rows: float | None


@dataclass(frozen=True, slots=True)
class Offered:
    """Poisson arrivals at `share` times the capacity, `rate` in a second, by clients whose patience is limited."""

    share: float
    rate: float
    run: Run
    rows: float | None

    @property
    def refused(self) -> float:
        """Share of the requests that were refused."""
        return sum(answer.refused for answer in self.run.answers) / max(1, len(self.run.answers))

    @property
    def goodput(self) -> float:
        """Pictures per second, of those that could have been answered before the last request was sent."""
        drawn = (answer.latency for answer in self.run.answers if answer.ok)
        return self.run.goodput(min(drawn, default=0.0))


@dataclass(slots=True)
class Figures:
    """A whole load run."""

    title: str
    machine: str
    seconds: float
    patience: float = 0.0
    levels: list[Level] = field(default_factory=list)
    offered: list[Offered] = field(default_factory=list)

    @property
    def transports(self) -> list[str]:
        return list(dict.fromkeys(level.transport for level in self.levels))

    @property
    def capacity(self) -> float:
        """Pictures per second once more users bring no more: the median of all levels with so many users.

        The highest level alone would be the luckiest one, and what is measured against it would look worse than it is.
        """
        highest = max(level.run.rate for level in self.levels)
        enough = min(level.users for level in self.levels if level.run.rate >= SATURATED * highest)
        return statistics.median(level.run.rate for level in self.levels if level.users >= enough)

    @property
    def lone(self) -> float:
        """Mean seconds of a picture of the level with fewest users."""
        return min(self.levels, key=lambda level: level.users).run.mean

    def of(self, transport: str) -> list[Level]:
        """The levels of one transport, fewest users first."""
        levels = (level for level in self.levels if level.transport == transport)
        return sorted(levels, key=lambda level: level.users)


def broken(
    levels: Sequence[Level], *, max_failures: float, max_p95: float | None = None
) -> list[str]:
    """What the levels did not keep, a line each: at most so many failures, and a p95 of at most so many seconds."""
    lines = []
    for level in levels:
        name = f"{level.users} users over {level.transport}"
        if not level.run.answers:
            lines.append(f"{name}: no request was answered")
            continue
        failures = 1 - level.run.success
        if failures > max_failures:
            lines.append(f"{name}: {failures:.1%} failed; at most {max_failures:.1%} may")
        p95 = level.run.percentile(95)
        if max_p95 is not None and not p95 <= max_p95:
            lines.append(
                f"{name}: 95 % were answered within {p95:.2f} s; {max_p95:g} s are the limit"
            )
    return lines
