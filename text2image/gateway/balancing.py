"""Which runner will finish a request first, as far as a gateway can know.

A runner tells its predicted backlog a few times a second. Meanwhile the gateway goes by the clock and by what it has
sent itself; what other gateways have sent it learns with the next status. So if each took the very best of many
runners, all gateways would run to the same one until they hear that it is full, and the more of them there are, and
the faster the runners, the worse: in simulation, worse than taking turns. The best of a few at random is nearly as
good where one gateway knows everything, and stays good where many know little.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol, Self, TypeVar

from text2image.core.limits import MEGA
from text2image.core.messages import State, Status

# Seconds for a megapixel-step on a runner that does not say, which is then taken to be like all others.
UNKNOWN_PACE = 0.2
# How many runners a request chooses among. Two would do against the crowd; three lose less where there is none.
CHOICES = 3


class FleetLoad(NamedTuple):
    """What several runners have before them, each as `Status` has it."""

    backlog_seconds: float
    active: int
    waiting: int
    utilization: float

    @classmethod
    def of(cls, statuses: Sequence[Status]) -> Self:
        """The longest backlog, the sum of their samples, and the mean utilization of those that take work."""
        working = [status for status in statuses if status.state is State.READY] or statuses
        return cls(
            backlog_seconds=max(status.backlog_seconds for status in statuses),
            active=sum(status.active for status in statuses),
            waiting=sum(status.waiting for status in statuses),
            utilization=sum(status.utilization for status in working) / len(working),
        )


class Load:
    """What one runner has before it; `clock` is in seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told_at = clock()
        self._backlog_seconds = 0.0
        self._pace = UNKNOWN_PACE
        # Pixel-steps of calls that the runner has not answered yet.
        self._sent: dict[Hashable, int] = {}

    def update(self, status: Status) -> None:
        """Takes over what the runner says: all that it had admitted by then is in it."""
        self._told_at = self._clock()
        self._backlog_seconds = status.backlog_seconds
        self._pace = status.pace or UNKNOWN_PACE

    def sent(self, call: Hashable, work: int) -> None:
        """Counts a call of so many pixel-steps until the runner answers."""
        self._sent[call] = work

    def admitted(self, call: Hashable, predicted_seconds: float) -> None:
        """Counts a call as the runner's until its next status does.

        Its prediction tells of what others have sent it since the last one.
        """
        known = self._backlog() + self._pace * self._sent.pop(call, 0) / MEGA
        self._backlog_seconds = max(known, predicted_seconds)
        self._told_at = self._clock()

    def over(self, call: Hashable) -> None:
        """Forgets a call that was never admitted: it was refused, or has lost its runner."""
        self._sent.pop(call, None)

    def seconds_until(self, work: int) -> float:
        """Predicted seconds until a request of so many pixel-steps would be done if it were sent now."""
        return self._backlog() + self._pace * (sum(self._sent.values()) + work) / MEGA

    def _backlog(self) -> float:
        return max(0.0, self._backlog_seconds - (self._clock() - self._told_at))


class Loaded(Protocol):
    """Whatever has a load."""

    @property
    def load(self) -> Load: ...


R = TypeVar("R", bound=Loaded)
# It spreads requests and protects nothing.
_CHANCE = random.Random()  # nosec B311


def first_to_finish(
    runners: Sequence[R],
    work: int,
    chance: random.Random = _CHANCE,
    until_loaded: Callable[[R], float] = lambda runner: 0.0,
) -> R:
    """Of a few of these at random the one that is predicted to finish a request of so many pixel-steps first.

    Args:
        until_loaded: seconds until a runner has loaded what the request needs. Some that have are always among the few.
    """
    waits = [(until_loaded(runner), runner) for runner in runners]
    few: list[tuple[float, R]] = []
    for group in ([each for each in waits if not each[0]], [each for each in waits if each[0]]):
        few += chance.sample(group, min(CHOICES, len(group)))
    _, first = min(few, key=lambda each: each[0] + each[1].load.seconds_until(work))
    return first
