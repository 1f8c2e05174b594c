"""What requests take beside the runner's own work: the road there and back, the picture's encoding, the disk."""

from __future__ import annotations

# Of RFC 6298, which foretells round trips by the same rule.
_ALPHA, _BETA, _DEVIATIONS = 1 / 8, 1 / 4, 4
# Of a client's patience; whatever it took before, a runner gets the rest.
_MOST = 0.5


class Overhead:
    """Seconds that are kept back from a runner's deadline, so that what it finishes in time is answered in time."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._deviation = 0.0

    def learn(self, seconds: float) -> None:
        """Takes in what one picture took beside the runner's work on it."""
        seconds = max(0.0, seconds)
        self._deviation += _BETA * (abs(seconds - self._mean) - self._deviation)
        self._mean += _ALPHA * (seconds - self._mean)

    def of(self, patience: float) -> float:
        """What is to be kept back of so many seconds."""
        return min(_MOST * patience, self._mean + _DEVIATIONS * self._deviation)
