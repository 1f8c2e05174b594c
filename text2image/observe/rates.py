"""How many requests a second a process ends, and how many of them badly, over the last few seconds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

# Seconds that are looked back on: long enough for a server that draws one picture in seconds.
WINDOW = 10


class Rates:
    """Counts by the second; `clock` is in seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        # Second, requests and failures of those seconds in which there were any.
        self._seconds: deque[tuple[int, int, int]] = deque()

    def count(self, *, failed: bool) -> None:
        """Counts a request that has ended just now."""
        second = int(self._clock())
        requests, failures = 0, 0
        if self._seconds and self._seconds[-1][0] == second:
            _, requests, failures = self._seconds.pop()
        self._seconds.append((second, requests + 1, failures + failed))
        self._forget()

    def per_second(self) -> tuple[float, float]:
        """Requests and failures a second."""
        self._forget()
        seconds = min(WINDOW, max(1.0, self._clock() - self._began))
        requests = sum(requests for _, requests, _ in self._seconds)
        failures = sum(failures for _, _, failures in self._seconds)
        return requests / seconds, failures / seconds

    def _forget(self) -> None:
        oldest = int(self._clock()) - WINDOW
        while self._seconds and self._seconds[0][0] <= oldest:
            self._seconds.popleft()
