"""Whether a request can be done in time, decided at once from the predicted work, and never by count alone.

The account is kept up to date by the engine's thread after each step and read by the event loop at each admission, so
that a refusal waits for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from threading import Lock

from text2image.engine.costs import StepCosts
from text2image.engine.sample import Generation, Group, Sample
from text2image.errors import DeadlineExceeded, Unavailable

# A refused client that comes back sooner than this would be refused again more often than not.
MIN_RETRY_SECONDS = 1.0


class Backlog:
    """The predicted work of all admitted samples. Safe to use from several threads."""

    def __init__(self, costs: StepCosts, max_seconds: float) -> None:
        """Refuses what would wait longer than `max_seconds`."""
        self._costs = costs
        self._max_seconds = max_seconds
        self._lock = Lock()
        # By group: samples in flight, their rows, their row-steps left, and pictures not yet decoded.
        self._samples: Counter[Group] = Counter()
        self._rows: Counter[Group] = Counter()
        self._row_steps: Counter[Group] = Counter()

    def admit(self, generation: Generation) -> float:
        """Books a request and returns the predicted seconds until its last picture.

        Raises:
            Unavailable: it would wait too long or miss its deadline; the retry delay is when it would not.
            DeadlineExceeded: it would miss its deadline even on an idle engine.
        """
        allowed = generation.deadline - generation.admitted_at
        with self._lock:
            alone = self._run_seconds(generation, 0, self._costs.best_seconds)
            predicted = self._predict(generation)
            # An idle engine may have measured itself in a bad hour. Were it believed, nothing would be admitted
            # that could show it otherwise.
            expected = predicted if self._samples.total() else alone
            if alone > allowed:
                raise DeadlineExceeded(
                    f"this takes about {alone:.1f} s on an idle server and the deadline is in "
                    f"{max(0.0, allowed):.1f} s; allow more time or ask for fewer steps"
                )
            excess = max(expected - allowed, expected - alone - self._max_seconds)
            if excess > 0:
                raise Unavailable(
                    f"the server is full: the pictures would be ready in about {expected:.0f} s",
                    reason=Unavailable.FULL,
                    retry_after=max(MIN_RETRY_SECONDS, excess),
                )
            for sample in generation.samples:
                self._book(sample, 1, sample.steps)
        return predicted

    def stepped(self, samples: list[Sample]) -> None:
        """Books one step less for each."""
        with self._lock:
            for sample in samples:
                self._row_steps[sample.group] -= sample.rows

    def left(self, sample: Sample) -> None:
        """Takes a sample out of the account: its picture is out, or it will never be."""
        with self._lock:
            self._book(sample, -1, sample.remaining)

    def seconds(self) -> float:
        """Predicted seconds until all that is admitted is done."""
        with self._lock:
            return self._total()

    def samples(self) -> int:
        """Samples admitted and not yet out."""
        with self._lock:
            return self._samples.total()

    def _book(self, sample: Sample, sign: int, steps: int) -> None:
        group = sample.group
        self._samples[group] += sign
        self._rows[group] += sign * sample.rows
        self._row_steps[group] += sign * sample.rows * steps

    def _total(self) -> float:
        return sum(self._group_total(group) for group in self._samples)

    def _work(self, group: Group, rows: int, row_steps: int, samples: int) -> float:
        """Seconds of a group's work, in batches as full as so many rows can make them."""
        occupancy = min(rows, self._costs.cap(group))
        per_row = self._costs.seconds(group, occupancy) / occupancy
        return row_steps * per_row + samples * self._costs.decode_seconds(group)

    def _predict(self, generation: Generation) -> float:
        """Seconds from now: as part of a batch if there is room, after the others' work if there is not."""
        first, count = generation.samples[0], len(generation.samples)
        group, rows = first.group, first.rows * count
        others = self._total() - self._group_total(group)
        shared = self._work(
            group,
            self._rows[group] + rows,
            self._row_steps[group] + rows * first.steps,
            self._samples[group] + count,
        )
        joined = self._run_seconds(generation, self._rows[group], self._costs.seconds)
        return max(joined, others + shared)

    def _group_total(self, group: Group) -> float:
        if not self._samples[group]:
            return 0.0
        return self._work(group, self._rows[group], self._row_steps[group], self._samples[group])

    def _run_seconds(
        self, generation: Generation, busy_rows: int, step_seconds: Callable[[Group, int], float]
    ) -> float:
        """Seconds to draw the request in batches that it shares with `busy_rows` others."""
        first = generation.samples[0]
        rows = first.rows * len(generation.samples)
        cap = self._costs.cap(first.group)
        shared = step_seconds(first.group, min(cap, rows + busy_rows))
        waves = max(1.0, rows / cap)
        decoding = len(generation.samples) * self._costs.decode_seconds(first.group)
        return first.steps * shared * waves + decoding
