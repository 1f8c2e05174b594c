"""Two classes of samples: interactive ones, and those in the background, which have what is left. No torch, no clock.

The background steps alone when no interactive sample could, and takes spare rows of an interactive pass that grows
little by it. While somebody was here a moment ago its steps are short, since whoever comes next waits for at most one.
For what it cannot have beside others at no cost, encoding and decoding, it saves up a small share of their time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from text2image.engine.costs import StepCosts
from text2image.engine.sample import BatchKey, Generation, Sample
from text2image.engine.scheduler import BatchLimits, Scheduler

# An interactive pass may take so many times longer for what rides along.
MOST_GROWTH = 1.1
# Of the time of interactive steps, what encoding and decoding for the background may take beside them.
CREDIT_SHARE = 0.1
# It saves up no more seconds than this: a burst of them would be felt.
MOST_CREDIT = 1.0
# A step in the background, as a share of the time that an interactive request takes alone, while such are about.
SHORT_STEP = 0.1
# They are about until the background has stepped for as long as so many of them take.
ABOUT = 20.0
# Weight of a request in the mean of what interactive ones take alone.
WEIGHT_OF_REQUEST = 0.2


class Classes:
    """The samples that have steps left, of both classes; safe to use from several threads.

    Attributes:
        interactive, background: the schedulers of each, under one lock. The first knows nothing of the other.
        alone: mean seconds that interactive requests would take alone; 0 until there was one.
        credit: seconds of encoding and decoding that the background may have beside interactive steps.
    """

    def __init__(self, costs: StepCosts) -> None:
        self.interactive = Scheduler()
        self.background = Scheduler(self.interactive.lock)
        self.alone = 0.0
        self.credit = 0.0
        self._costs = costs
        # Seconds of steps in the background since the last interactive one.
        self._undisturbed = 0.0

    def __len__(self) -> int:
        return len(self.interactive) + len(self.background)

    def __contains__(self, sample: Sample) -> bool:
        return sample in self.of(sample.generation)

    def of(self, generation: Generation) -> Scheduler:
        """The scheduler of a request's class."""
        return self.background if generation.share.background else self.interactive

    @property
    def are_about(self) -> bool:
        """Whether interactive requests came a moment ago, so that the next may come in any moment."""
        return self._undisturbed < ABOUT * self.alone

    def asked(self, alone: float) -> None:
        """Takes note of an interactive request that takes so many seconds alone."""
        weight = WEIGHT_OF_REQUEST if self.alone else 1.0
        self.alone += weight * (alone - self.alone)
        self._undisturbed = 0.0

    def select(self, limits: Callable[[BatchKey], BatchLimits]) -> list[Sample]:
        """The samples of the next forward pass: interactive ones if there are any."""
        with self.interactive.lock:
            if batch := self.interactive.select(limits):
                return batch
            return self.background.select(lambda key: self._bounded(key, limits(key)))

    def _bounded(self, key: BatchKey, limits: BatchLimits) -> BatchLimits:
        """The limits of a step that is short while interactive requests are about."""
        if not self.are_about:
            return limits
        most = SHORT_STEP * self.alone
        rows = bisect_right(
            range(1, limits.start + 1), most, key=lambda rows: self._costs.seconds(key, rows)
        )
        return BatchLimits(min(limits.start, rows), min(limits.fit, max(1, rows)))

    def riders(self, batch: list[Sample]) -> list[Sample]:
        """Samples in the background that step with an interactive batch, in rows that nobody else could have.

        The first of those that wait starts among them if there is credit for its prompt and its picture.
        """
        if not batch or batch[0].background:
            return []
        key = batch[0].key
        with self.interactive.lock:
            queue, others = self.background.queues.get(key), self.interactive.queues[key]
            if queue is None or any(flow.waiting for flow in others.flows.values()):
                return []
            cap = self._costs.cap(key)
            rows = cap - sum(sample.rows for sample in batch)
            work = sum(sample.work for sample in batch)
            longest = MOST_GROWTH * self._costs.seconds(key, work)
            chosen: list[Sample] = []

            def fits(sample: Sample) -> bool:
                grown = self._costs.seconds(key, work + sample.work)
                return sample.rows <= rows and work + sample.work <= cap and grown <= longest

            for sample in queue.running:
                if not fits(sample):
                    return chosen
                chosen.append(sample)
                rows -= sample.rows
                work += sample.work
            following = self.background.following(queue)
            if following and fits(following) and self.affords(self._around(key)):
                self.background.start(following)
                chosen.append(following)
            return chosen

    def _around(self, key: BatchKey) -> float:
        return self._costs.encode_seconds(key) + self._costs.decode_seconds(key)

    def affords(self, seconds: float) -> bool:
        """Whether the background has saved up for something that takes so many seconds beside interactive steps."""
        return self.credit >= min(seconds, MOST_CREDIT)

    def pay(self, seconds: float) -> None:
        """Books what the background took beside interactive steps."""
        self.credit -= seconds

    def charge(
        self, first: Sample, key: BatchKey, seconds: float, now: float, alone: float
    ) -> None:
        """Books a step, as `Scheduler.charge`, of a batch that began with this sample."""
        with self.interactive.lock:
            if first.background:
                self._undisturbed += seconds
            else:
                self._undisturbed = 0.0
                self.credit = min(MOST_CREDIT, self.credit + CREDIT_SHARE * seconds)
            self.of(first.generation).charge(key, seconds, now, alone)
