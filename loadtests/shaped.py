"""A shape of `shapes.py` as Locust runs it. Not in the locustfile, where Locust would make one by itself."""

from __future__ import annotations

from locust import LoadTestShape

from loadtests.shapes import SHAPES


class Shape(LoadTestShape):
    """Users come and go as the function of this name says."""

    # Otherwise Locust warns that it ignores the options that the peak and the length are taken from.
    use_common_options = True

    def __init__(self, name: str, peak: int, seconds: float) -> None:
        super().__init__()
        self._users = SHAPES[name]
        self._peak = peak
        self._seconds = seconds

    def tick(self) -> tuple[int, float] | None:
        """Users and how many of them may come or go in a second; None ends the run."""
        passed = self.get_run_time() / self._seconds
        return (self._users(passed, self._peak), float(self._peak)) if passed < 1 else None
