"""How full the server's batches were, by its own metrics."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from types import TracebackType

import httpx

METRIC = "text2image_batch_rows"
# Seconds between two readings.
PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """The totals since the server started: rows in its forward passes, and the passes."""

    at: float
    rows: float
    passes: float


def parse(exposition: str, at: float) -> Reading:
    """Reads the totals from Prometheus' text form, summed over all runners."""
    totals = {"sum": 0.0, "count": 0.0}
    for line in exposition.splitlines():
        for kind in totals:
            if line.startswith((f"{METRIC}_{kind} ", f"{METRIC}_{kind}{{")):
                totals[kind] += float(line.split()[-1])
    return Reading(at, totals["sum"], totals["count"])


def between(readings: list[Reading], begin: float, end: float) -> float | None:
    """Mean rows of a forward pass in a time, None where there was none or nothing was read.

    Taken from the readings closest to both ends that lie within; where those are too few, from the ones around.
    """
    times = [reading.at for reading in readings]
    first, last = bisect_left(times, begin), bisect_right(times, end) - 1
    if last <= first:
        first, last = max(0, first - 1), min(len(times) - 1, last + 1)
    if last <= first:
        return None
    passes = readings[last].passes - readings[first].passes
    return (readings[last].rows - readings[first].rows) / passes if passes > 0 else None


class Sampler:
    """Reads the metrics again and again while it is entered; a server that does not show them gives no readings."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client = client
        self._url = f"{url}/metrics"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.readings: list[Reading] = []

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._ended.is_set():
            self._read_once()
            self._ended.wait(PAUSE)

    def _read_once(self) -> None:
        try:
            answer = self._client.get(self._url)
        except httpx.TransportError:
            return
        if answer.is_success:
            self.readings.append(parse(answer.text, time.time()))
