"""Whether a request can be done in time, decided at once from the predicted work, and never by count alone.

The account is kept up to date by the engine's thread after each step and read by the event loop at each admission, so
that a refusal waits for nothing. It follows the scheduler: owners have shares of the device, so one whose line is empty
waits for little of another's, however long that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from threading import Lock

from text2image.core.errors import DeadlineExceeded, Text2ImageError, Unavailable
from text2image.engine.costs import StepCosts
from text2image.engine.sample import Generation, Group, Sample

# A refused client that comes back sooner than this would be refused again more often than not.
MIN_RETRY_SECONDS = 1.0
# A refusal holds for this share of the time that others are in line for, and for no longer than so many seconds: those
# who refuse in our place meanwhile, without asking, leave the line shorter by that, and never empty.
LASTING_SHARE = 0.1
MAX_LASTING_SECONDS = 1.0
# At admission a picture, and the wait for it, are taken to last so many times as long as the last ones say, since they
# are not all alike. When it comes up for rows it is not, or what was admitted with a margin would end for want of one.
MARGIN = 1.2
# Weight of a step in a size's pace: about as many are remembered as a picture takes.
WEIGHT_OF_STEP = 0.05
# How long a pace is believed of a size that has left. Whoever would bring it back is judged by it, and could be refused
# for ever on the word of a crowd that is long gone.
PACE_SECONDS = 10.0

Weights = dict[Group, dict[str, float]]


@dataclass(slots=True)
class _Pace:
    """Seconds on the clock from one step of a size to its next, on average, and when the last one was."""

    seconds: float
    at: float


@dataclass(slots=True)
class _Account:
    """What is in flight of one kind: samples whose picture is not out, their rows, and their row-steps left.

    `line_rows` and `line_row_steps` are the part of those that have not begun.
    """

    samples: int = 0
    rows: int = 0
    row_steps: int = 0
    line_rows: int = 0
    line_row_steps: int = 0
    stepped_at: float | None = None

    def book(self, sample: Sample, sign: int) -> None:
        self.samples += sign
        self.rows += sign * sample.rows
        self.row_steps += sign * sample.rows * sample.remaining

    def line_up(self, sample: Sample, sign: int) -> None:
        self.line_rows += sign * sample.rows
        self.line_row_steps += sign * sample.rows * sample.remaining


class Backlog:
    """The predicted work of all admitted samples. Safe to use from several threads."""

    def __init__(self, costs: StepCosts, max_seconds: float) -> None:
        """Refuses what would wait longer than `max_seconds`."""
        self._costs = costs
        self._max_seconds = max_seconds
        self._lock = Lock()
        self._groups: dict[Group, _Account] = {}
        self._owners: dict[str, dict[Group, _Account]] = {}
        self._shares: dict[str, int] = {}
        # Samples that have begun, by size.
        self._begun: dict[Group, set[Sample]] = {}
        self._waiting = 0
        # Since the engine was last idle. Where much is refused, whatever leaves is replaced at once, so what is in
        # flight just now tells too little.
        self._paces: dict[Group, _Pace] = {}

    def admit(self, generation: Generation) -> float:
        """Books a request and returns the predicted seconds until its last picture.

        Raises:
            Unavailable: it would wait too long or miss its deadline; the retry delay is when it would not.
            DeadlineExceeded: it would miss its deadline even on an idle engine.
        """
        allowed = generation.deadline - generation.admitted_at
        with self._lock:
            alone = self.alone_seconds(generation)
            idle = not self._groups
            for sample in generation.samples:
                self._book(sample, 1)
            # An idle engine may have measured itself in a bad hour. Were it believed, nothing would be admitted
            # that could show it otherwise.
            waiting, drawing = (0.0, alone) if idle else self._expected(generation)
            refusal = self._refusal(allowed, alone, waiting, drawing)
            if refusal is not None:
                for sample in generation.samples:
                    self._book(sample, -1)
                raise refusal
        return waiting + drawing

    def alone_seconds(self, generation: Generation) -> float:
        """Seconds to draw a request on this engine at its best, with nothing else to do."""
        first, count = generation.samples[0], len(generation.samples)
        cap = self._costs.cap(first.group)
        rows = count * first.rows
        step = self._costs.best_seconds(first.group, min(cap, rows))
        decoding = count * self._costs.decode_seconds(first.group)
        return first.steps * step * max(1.0, rows / cap) + decoding

    def drawing_seconds(self, samples: Sequence[Sample], rows: int) -> list[float]:
        """Seconds from now to the picture of each of these samples, which begin in a batch of so many rows.

        With it the others of its request that have not begun, as far as they do not fit beside it.
        """
        with self._lock:
            weights = self._weights()
            return [self._waves(each) * self._drawing(each, rows, weights, 1.0) for each in samples]

    def stepped(self, sample: Sample) -> None:
        """Books one step less."""
        with self._lock:
            self._waiting -= sample.step == 1
            begun = self._begun.setdefault(sample.group, set())
            in_line = sample not in begun
            for account in self._accounts(sample):
                account.row_steps -= sample.rows
                if in_line:
                    account.line_row_steps -= sample.rows
                if in_line and sample.begun:
                    account.line_up(sample, -1)
            if sample.begun:
                begun.add(sample)

    def paced(self, group: Group, now: float) -> None:
        """Learns that a size has stepped, at this time of the loop's clock."""
        with self._lock:
            account = self._groups.get(group)
            if account is None:
                return
            if account.stepped_at is not None:
                interval = now - account.stepped_at
                pace = self._paces.setdefault(group, _Pace(interval, now))
                pace.seconds += WEIGHT_OF_STEP * (interval - pace.seconds)
                pace.at = now
            account.stepped_at = now
            for other, pace in list(self._paces.items()):
                if other not in self._groups and now - pace.at > PACE_SECONDS:
                    del self._paces[other]

    def left(self, sample: Sample) -> None:
        """Takes a sample out of the account: its picture is out, or it will never be."""
        with self._lock:
            self._book(sample, -1)

    def seconds(self) -> float:
        """Predicted seconds until all that is admitted is done."""
        with self._lock:
            work = (self._work(group, account) for group, account in self._groups.items())
            return self._costs.drag * sum(work)

    def pace(self, group: Group, rows: int) -> float:
        """Seconds that a step of one more sample of so many rows adds to full batches."""
        cap = self._costs.cap(group)
        return self._costs.drag * rows * self._costs.seconds(group, cap) / cap

    def samples(self) -> int:
        """Samples admitted and not yet out."""
        with self._lock:
            return sum(account.samples for account in self._groups.values())

    def waiting(self) -> int:
        """Those of them that have not taken a step."""
        with self._lock:
            return self._waiting

    def _book(self, sample: Sample, sign: int) -> None:
        group, owner = sample.group, sample.owner
        groups = self._owners.setdefault(owner, {})
        if not sample.step:
            self._waiting += sign
        if sign > 0:
            # What leaves may have come with an older weight.
            self._shares[owner] = sample.generation.share.weight
        begun = self._begun.setdefault(group, set())
        for accounts in (self._groups, groups):
            account = accounts.setdefault(group, _Account())
            account.book(sample, sign)
            if sample not in begun:
                account.line_up(sample, sign)
            if not account.samples:
                del accounts[group]
        begun.discard(sample)
        if group not in self._groups:
            del self._begun[group]
        if not groups:
            del self._owners[owner], self._shares[owner]
        if not self._groups:
            self._paces.clear()

    def _refusal(
        self, allowed: float, alone: float, waiting: float, drawing: float
    ) -> Text2ImageError | None:
        if alone > allowed:
            return DeadlineExceeded(
                f"this takes about {alone:.1f} s on an idle server and the deadline is in "
                f"{max(0.0, allowed):.1f} s; allow more time or ask for fewer steps"
            )
        excess = max(waiting + drawing - allowed, waiting - self._max_seconds)
        if excess > 0:
            return Unavailable(
                "the server is full: the pictures would be ready in about "
                f"{waiting + drawing:.0f} s",
                reason=Unavailable.FULL,
                retry_after=max(MIN_RETRY_SECONDS, excess),
                lasts=min(MAX_LASTING_SECONDS, LASTING_SHARE * waiting),
                anything=waiting > min(allowed, self._max_seconds),
            )
        return None

    def _accounts(self, sample: Sample) -> tuple[_Account, _Account]:
        """Its size's, and its owner's of that size."""
        return self._groups[sample.group], self._owners[sample.owner][sample.group]

    def _expected(self, generation: Generation) -> tuple[float, float]:
        """Seconds that the last sample of a booked request waits for rows, and then until its picture."""
        sample = generation.samples[-1]
        weights = self._weights()
        drawing = self._drawing(sample, 1, weights, MARGIN)
        steps = self._steps_until_begun(sample, weights[sample.group])
        return MARGIN * self._clocked(sample, steps, 1, weights), drawing

    def _waves(self, sample: Sample) -> float:
        """Batches that it takes to begin all of a sample's request that has not begun."""
        new = sum(each.rows for each in sample.generation.samples if not each.begun)
        return max(1.0, new / self._costs.cap(sample.group))

    def _steps_until_begun(self, sample: Sample, weights: dict[str, float]) -> float:
        """Steps of its size until there are rows for a booked sample.

        Rows come free when the samples that have them end, each after its last step. Those in line before it take them
        first, all for as long as the mean of the line.
        """
        group = sample.group
        cap, account = self._costs.cap(group), self._groups[group]
        ahead = self._row_steps_until_begun(sample, weights)
        steps = account.line_row_steps / account.line_rows
        places = max(1, cap // sample.rows)
        turns = max(1, round(ahead / (steps * sample.rows)))
        # After the first round, every one is like the round before it.
        rounds = max(0, (turns - 1) // places - 1)
        ends = [float(each.remaining) for each in self._begun[group] if each.remaining]
        ends = sorted(ends)[-places:] + [0.0] * (places - len(ends))
        heapify(ends)
        for _ in range(turns - rounds * places - 1):
            heapreplace(ends, ends[0] + steps)
        return ends[0] + rounds * steps

    def _row_steps_until_begun(self, sample: Sample, weights: dict[str, float]) -> float:
        """The work that begins until all of a booked sample's owner has begun, each owner in its share."""
        in_line = {owner: self._owners[owner][sample.group].line_row_steps for owner in weights}
        own = in_line[sample.owner] / weights[sample.owner]
        return sum(min(in_line[owner], weights[owner] * own) for owner in weights)

    def _drawing(self, sample: Sample, rows: int, weights: Weights, margin: float) -> float:
        """Seconds from a sample's first step to its picture, in a batch of so many rows or what there will be."""
        drawing = self._clocked(sample, sample.steps, rows, weights)
        pace = self._paces.get(sample.group)
        return max(drawing, margin * sample.steps * pace.seconds) if pace else drawing

    def _clocked(self, sample: Sample, steps: float, rows: int, weights: Weights) -> float:
        """Seconds on the clock for so many steps of a size, in batches of so many rows or what there will be."""
        group = sample.group
        rows = max(rows, self._occupancy(group))
        # Each of those in the batch finishes about once while this one is drawn.
        decoding = rows / sample.rows * self._costs.decode_seconds(group) / sample.steps
        return self._in_turns(group, steps * (self._costs.seconds(group, rows) + decoding), weights)

    def _in_turns(self, group: Group, seconds: float, weights: Weights) -> float:
        """Seconds on the clock for so many of one size's, which takes turns with the others."""
        total, weight = seconds, sum(weights[group].values())
        for other, account in self._groups.items():
            if other != group:
                turns = seconds * sum(weights[other].values()) / weight
                # A size that fills half its batch is taken to stay as busy as it is.
                busy = 2 * self._occupancy(other) >= self._costs.cap(other)
                total += turns if busy else min(turns, self._work(other, account))
        return self._costs.drag * total

    def _weights(self) -> Weights:
        """What the scheduler takes each owner to weigh in each size."""
        slowdown = {group: self._slowdown(group) for group in self._groups}
        weights: Weights = {group: {} for group in self._groups}
        for owner, groups in self._owners.items():
            sizes = sum(slowdown[group] for group in groups)
            for group in groups:
                weights[group][owner] = self._shares[owner] * slowdown[group] / sizes
        return weights

    def _slowdown(self, group: Group) -> float:
        """How many times longer a step takes than that of a lone sample."""
        account = self._groups[group]
        alone = max(1, round(account.rows / account.samples))
        step = self._costs.seconds(group, self._occupancy(group))
        return step / self._costs.seconds(group, alone)

    def _occupancy(self, group: Group) -> int:
        """Rows that the next batches of a size will have."""
        return min(self._groups[group].rows, self._costs.cap(group))

    def _work(self, group: Group, account: _Account) -> float:
        """Seconds of work, in batches as full as all that is in flight of this size can make them."""
        decoding = account.samples * self._costs.decode_seconds(group)
        return account.row_steps * self._per_row(group) + decoding

    def _per_row(self, group: Group) -> float:
        """Seconds of a step for each of its rows."""
        occupancy = self._occupancy(group)
        return self._costs.seconds(group, occupancy) / occupancy
