"""Whether a request can be done in time, decided at once from the predicted work, and never by count alone.

Asked by the event loop, so that a refusal waits for no step. It follows the scheduler, whose account it reads: owners
have shares of the device, so a new one waits for little of another's work, however much that is.
"""

from __future__ import annotations

from collections.abc import Sequence

from text2image.core.errors import DeadlineExceeded, Text2ImageError, Unavailable
from text2image.engine.background import Classes
from text2image.engine.costs import StepCosts
from text2image.engine.sample import BatchKey, Generation, Sample
from text2image.engine.scheduler import Queue, Scheduler

# A refused client that comes back sooner than this would be refused again more often than not.
MIN_RETRY_SECONDS = 1.0
# A refusal holds for this share of the predicted wait, and for no longer than so many seconds: those who are refused
# unasked meanwhile leave the queue shorter by that, and never empty.
LASTING_SHARE = 0.1
MAX_LASTING_SECONDS = 1.0
# A batch in the background that is full, and one to follow it: what is beyond waits where it takes no memory.
BACKGROUND_BATCHES = 2
# Who is too early in the background comes back when so much of a batch is done, and not sooner than in so many seconds.
BACKGROUND_RETRY = 0.5
MIN_BACKGROUND_RETRY = 0.05
# Admission asks for so many times what is predicted. When a sample comes up for rows it is not asked again, or what
# was admitted with a margin would end for want of one.
MARGIN = 1.2


class Backlog:
    """The predicted work of all admitted samples. Safe to use from several threads."""

    def __init__(self, costs: StepCosts, max_seconds: float) -> None:
        """Refuses what would wait longer than `max_seconds`."""
        self.classes = Classes(costs)
        # What is in the background delays nobody else, so that predictions are of the interactive class alone.
        self.scheduler = self.classes.interactive
        self.costs = costs
        self.max_seconds = max_seconds

    def admit(self, generation: Generation) -> float:
        """Adds a request's samples to the scheduler and returns the predicted seconds until its last picture.

        Raises:
            Unavailable: it would wait too long or miss its deadline; the retry delay is when it would not.
            DeadlineExceeded: it would miss its deadline even on an idle engine.
        """
        if generation.share.background:
            return self._admit_background(generation)
        with self.scheduler.lock:
            self.classes.asked(self.alone_seconds(generation))
            idle = not self.scheduler.queues
            try:
                for sample in generation.samples:
                    self.scheduler.add(sample)
                return self._predicted(generation, idle=idle)
            except Exception:
                for sample in generation.samples:
                    self.scheduler.remove(sample)
                raise

    def _admit_background(self, generation: Generation) -> float:
        """The same for one in the background: as many are let in as keep batches full."""
        background, first = self.classes.background, generation.samples[0]
        alone = self.alone_seconds(generation)
        allowed = generation.deadline - generation.admitted_at
        if refusal := self._refusal(allowed, alone, 0.0, 0.0):
            raise refusal
        with background.lock:
            cap = self.costs.cap(first.key)
            queue = background.queues.get(first.key)
            held = sum(each.rows for each in queue.samples()) if queue else 0
            ahead = self._seconds_of(background)
            if held >= BACKGROUND_BATCHES * cap or ahead > self.max_seconds:
                batch = self.costs.seconds(first.key, cap) * first.passes
                raise Unavailable(
                    "the server has enough to draw in the background",
                    reason=Unavailable.FULL,
                    retry_after=min(
                        MIN_RETRY_SECONDS, max(MIN_BACKGROUND_RETRY, BACKGROUND_RETRY * batch)
                    ),
                )
            for sample in generation.samples:
                background.add(sample)
            return self.seconds() + ahead + alone

    def _predicted(self, generation: Generation, *, idle: bool) -> float:
        """Seconds until the last picture of a request that was just added; raises what refuses it."""
        alone = self.alone_seconds(generation)
        # An idle engine may have measured itself in a bad hour. Were it believed, nothing would be admitted that could
        # show it otherwise.
        waiting, drawing = (0.0, alone) if idle else self._expected(generation.samples[-1])
        allowed = generation.deadline - generation.admitted_at
        if refusal := self._refusal(allowed, alone, waiting, drawing):
            raise refusal
        return waiting + drawing

    def alone_seconds(self, generation: Generation) -> float:
        """Seconds to draw a request on this engine at its best, with nothing else to do."""
        first, count = generation.samples[0], len(generation.samples)
        cap = self.costs.cap(first.key)
        rows = count * first.work
        step = self.costs.seconds(first.key, min(cap, rows), best=True)
        return first.passes * step * max(1.0, rows / cap) + count * self._around(first.key)

    def drawing_seconds(self, samples: Sequence[Sample], rows: float) -> list[float]:
        """Seconds from now to the picture of each of these samples, which start in a batch of so many rows."""
        with self.scheduler.lock:
            return [self._drawing(sample, rows) for sample in samples]

    def seconds(self) -> float:
        """Predicted seconds until all that is admitted is done, but for what is in the background."""
        return self._seconds_of(self.scheduler)

    def _seconds_of(self, scheduler: Scheduler) -> float:
        with scheduler.lock:
            work = (self._work(key, queue) for key, queue in scheduler.queues.items())
            return self.costs.overhead * sum(work)

    def pace(self, key: BatchKey, rows: float) -> float:
        """Seconds that a pass of one more sample of so many plain rows adds to full batches."""
        cap = self.costs.cap(key)
        return self.costs.overhead * rows * self.costs.seconds(key, cap) / cap

    def samples(self) -> int:
        """Samples admitted that have steps left, of both classes."""
        return len(self.classes)

    def waiting(self) -> int:
        """Those of them that have no rows yet, and are not in the background."""
        return self.scheduler.waiting()

    def _refusal(
        self, allowed: float, alone: float, waiting: float, drawing: float
    ) -> Text2ImageError | None:
        if alone > allowed:
            return DeadlineExceeded(
                f"this takes about {alone:.1f} s on an idle server and the deadline is in "
                f"{max(0.0, allowed):.1f} s; allow more time or ask for fewer steps"
            )
        excess = max(waiting + drawing - allowed, waiting - self.max_seconds)
        if excess > 0:
            # A device that is too slow just now, as beside other programs, is so whether somebody waits or not.
            holds = waiting if drawing <= allowed else waiting + drawing
            return Unavailable(
                "the server is full: the pictures would be ready in about "
                f"{waiting + drawing:.0f} s",
                reason=Unavailable.FULL,
                retry_after=max(MIN_RETRY_SECONDS, excess),
                lasts=min(MAX_LASTING_SECONDS, LASTING_SHARE * holds),
                anything=waiting > min(allowed, self.max_seconds),
            )
        return None

    def _expected(self, sample: Sample) -> tuple[float, float]:
        """Seconds that a sample which was added last waits for rows, and then until its picture."""
        waiting = self._steps_until_start(sample) * self._interval(sample, 1)
        return MARGIN * waiting, MARGIN * self._drawing(sample, 1)

    def _steps_until_start(self, sample: Sample) -> float:
        """Steps of its key until there are rows for the last of an owner's samples.

        Rows come free when the samples that have them end, each after its last step. Those ahead take them first, all
        for as long as the mean of those that wait.
        """
        queue = self.scheduler.queues[sample.key]
        flows = queue.flows.values()
        steps = sum(flow.work for flow in flows) / sum(flow.rows for flow in flows)
        places = max(1, int(self.costs.cap(sample.key) / sample.work))
        ends = sorted(each.remaining for each in queue.running)[-places:]
        ends = [0] * (places - len(ends)) + ends
        turn = max(1, round(self._work_until_start(sample, queue) / (steps * sample.work)))
        rounds, place = divmod(turn - 1, places)
        return ends[place] + rounds * steps

    def _work_until_start(self, sample: Sample, queue: Queue) -> float:
        """The work that starts until all of an owner's has, each owner's in its share."""
        weight = self.scheduler.weight
        own = queue.flows[sample.owner].work / weight(sample.owner, queue)
        return sum(
            min(flow.work, weight(owner, queue) * own) for owner, flow in queue.flows.items()
        )

    def _drawing(self, sample: Sample, rows: float) -> float:
        """Seconds on the clock from a sample's first step to its picture, its prompt's encoding included."""
        longer = (sample.encoding - 1) * self.costs.encode_seconds(sample.key)
        around = self.costs.overhead * (self._around(sample.key) + longer)
        return sample.passes * self._interval(sample, rows) + around

    def _around(self, key: BatchKey) -> float:
        """Device seconds of a picture before its first step and after its last."""
        return self.costs.encode_seconds(key) + self.costs.decode_seconds(key)

    def _interval(self, sample: Sample, rows: float) -> float:
        """Seconds on the clock from one step of a sample to its next, in a batch of at least so many plain rows."""
        key = sample.key
        queue = self.scheduler.queues[key]
        rows = max(rows, self._occupancy(key, queue))
        # Of the others some finish at each step: all of them once in as many steps as they take. Others follow them.
        finishing = (rows - sample.work) * queue.pictures / queue.planned
        turn = self.costs.seconds(key, rows) + finishing * self._around(key)
        return max(self.costs.overhead * turn / self.scheduler.share(queue), queue.interval)

    def _work(self, key: BatchKey, queue: Queue) -> float:
        """Device seconds for all of a key, in batches as full as it can make them."""
        occupancy = self._occupancy(key, queue)
        waiting = queue.flows.values()
        work = sum(sample.work * sample.remaining for sample in queue.running)
        work += sum(flow.work for flow in waiting)
        step = self.costs.seconds(key, occupancy) / occupancy
        encoding = sum(len(flow.waiting) for flow in waiting) * self.costs.encode_seconds(key)
        return work * step + encoding + queue.pictures * self.costs.decode_seconds(key)

    def _occupancy(self, key: BatchKey, queue: Queue) -> float:
        """Plain rows that the next batches of a key will have."""
        rows = sum(sample.work for sample in queue.running)
        rows += sum(flow.rows for flow in queue.flows.values())
        return min(rows, self.costs.cap(key))
