"""The step loop: joins, steps, leaves, decodes. Synchronous and without torch; a tick is one step of one batch.

It keeps these promises (the tests name them): a sample joins at the next tick and leaves at its own last step; every
admitted request ends exactly once, and all that it held is released once; a failing sample never fails its neighbours;
what is cancelled or late is gone by the next tick.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

from text2image.core.errors import Cancelled, DeadlineExceeded, Text2ImageError
from text2image.core.messages import Completed, Event, GeneratedImage, Pixels, Timings
from text2image.engine import failures
from text2image.engine.admission import Backlog
from text2image.engine.attempts import Attempts
from text2image.engine.costs import StepCosts
from text2image.engine.decoding import SHARE_BESIDE_STEPS, ClassDecoding, Decoding
from text2image.engine.encoding import encoded_at_once
from text2image.engine.memory import MemoryGuard
from text2image.engine.models.contract import DeviceLost, Model
from text2image.engine.reports import Observer, Reports
from text2image.engine.sample import Generation, Sample

logger = logging.getLogger(__name__)

# When a pause makes a whole queue late, a tick tries no more batches than this for one that is in time: what has
# started waits meanwhile.
MOST_BATCHES_TRIED = 8

Outcome = Event | Text2ImageError


class StepLoop:
    """The samples in flight and the one thread's worth of work that they need."""

    def __init__(
        self,
        model: Model,
        costs: StepCosts,
        backlog: Backlog,
        *,
        clock: Callable[[], float],
        emit: Callable[[Generation, Outcome], None],
        observer: Observer | None = None,
        memory: MemoryGuard | None = None,
    ) -> None:
        """`emit` receives a generation's events; a `Completed` or an error is the last of them."""
        self._model = model
        self._costs = costs
        self._backlog = backlog
        self._clock = clock
        self._emit = emit
        self._observer = observer or Observer()
        self._memory = memory or MemoryGuard()
        self._reports = Reports(model, clock, emit)
        self._classes = backlog.classes
        # Those that the model holds something for.
        self._started: set[Sample] = set()
        self._deadlines: list[tuple[float, int, Generation]] = []
        self._order = count()
        self._active: set[Generation] = set()
        # When the last tick ended, unless there was nothing left to do; what this tick should have taken.
        self._ticked_at: float | None = None
        self._predicted = 0.0
        self.counters: Counter[str] = Counter()
        self._attempt = Attempts(model, costs, self.counters, self._blame)
        make = partial(
            Decoding,
            model,
            costs,
            self._memory,
            self._attempt,
            clock=clock,
            blame=self._blame,
            decoded=self._decoded,
        )
        self._decoding = ClassDecoding(self._classes, costs, make, clock)

    @property
    def idle(self) -> bool:
        """Whether no sample is in flight, so that a tick would do nothing."""
        return not self._active

    @property
    def decoding(self) -> int:
        """Samples that have taken their last step and whose picture is not out."""
        return len(self._decoding)

    def add(self, generation: Generation) -> None:
        """Takes in an admitted request, unless there is no memory for it any more.

        Admission has put its samples in the scheduler, so that they may have stepped before, or even ended.
        """
        if generation.ended:
            return
        self._active.add(generation)
        try:
            self._memory.refresh(self._clock())
            refusal = self._memory.refusal(generation)
        except DeviceLost:
            raise
        except Exception as error:
            refusal = failures.outcome_of(error, generation.request)
        if refusal:
            self._end(generation, refusal)
            return
        heapq.heappush(self._deadlines, (generation.deadline, next(self._order), generation))

    def cancel(self, generation: Generation) -> None:
        """Ends a request whose client has gone; nothing happens if it has ended already."""
        if not generation.ended:
            self._end(generation, Cancelled("the client cancelled the request"))

    def tick(self) -> None:
        """One step of one batch, and as much decoding as does not stall the others."""
        started = self._clock() if self._ticked_at is None else self._ticked_at
        self._predicted = 0.0
        self._memory.refresh(self._clock())
        self._expire()
        batch = self._next_batch()
        batch += self._classes.riders(batch)
        rows = sum(sample.rows for sample in batch)
        beside = (batch[0].key, rows) if batch else None
        step_seconds = self._step(batch) if batch else 0.0
        self._predicted += self._decoding.run(step_seconds, beside)
        now = self._clock()
        self._costs.observe_tick(self._predicted, now - started)
        self._ticked_at = None if self.idle else now

    def fail_all(self, error: Exception) -> None:
        """Ends every request with an internal error, after a fault that no sample can be blamed for."""
        for generation in list(self._active):
            self._end(generation, failures.internal(error))
        self._ticked_at = None

    def close(self) -> None:
        """Releases what is still in flight, unfinished; the last call of all."""
        for sample in list(self._started):
            self._release(sample)

    # Stepping

    def _next_batch(self) -> list[Sample]:
        """Who steps next. Ends on the way what comes up for rows too late, before any work is spent on it."""
        batch: list[Sample] = []
        for _ in range(MOST_BATCHES_TRIED):
            batch = self._classes.select(self._costs.limits)
            late = self._late(batch)
            if not late:
                return batch
            # Without these the others may be in time.
            for sample, seconds in late[len(late) // 2 :]:
                if not sample.generation.ended:
                    self._drop(sample, seconds)
        return [sample for sample in batch if sample.step]

    def _late(self, batch: list[Sample]) -> list[tuple[Sample, float]]:
        """A batch's new interactive samples that would miss their deadlines, and by how many seconds."""
        new = [sample for sample in batch if not (sample.step or sample.background)]
        if not new:
            return []
        if sum(not each.share.background for each in self._active) == 1:
            # As at admission: an engine with nothing else to do is believed to be at its best.
            seconds = [self._backlog.alone_seconds(sample.generation) for sample in new]
        else:
            rows = sum(sample.work for sample in batch)
            seconds = self._backlog.drawing_seconds(new, rows)
        now = self._clock()
        late = (
            now + takes - sample.generation.deadline
            for sample, takes in zip(new, seconds, strict=True)
        )
        return [(sample, excess) for sample, excess in zip(new, late, strict=True) if excess > 0]

    def _drop(self, sample: Sample, late: float) -> None:
        """Gives up a picture; what its request has started is finished."""
        generation = sample.generation
        if generation.pending == generation.request.n and not any(
            each.step for each in generation.samples
        ):
            self._end(generation, failures.too_late(late), "dropped")
            return
        self._classes.of(generation).remove(sample)
        generation.dropped += 1
        self._out(sample)

    def _step(self, batch: list[Sample]) -> float:
        """One pass; the seconds that it took, without those of what came before and after it."""
        started = self._clock()
        batch = self._joined(batch)
        if not batch:
            return 0.0
        key, first = batch[0].key, batch[0].work
        rows, work = sum(sample.rows for sample in batch), sum(sample.work for sample in batch)
        retries = self.counters["retries"]
        self._predicted += self._costs.seconds(key, work)
        pass_started = self._clock()
        stepped = self._advance(self._attempt.all(batch, self._model.predict))
        stepped_at = self._clock()
        seconds = stepped_at - pass_started
        if self.counters["retries"] == retries:
            self._costs.observe_step(key, rows, seconds, load=work / rows)
        self.counters["sample_steps"] += len(stepped)
        self._observer.stepped(len(batch), rows, self._costs.cap(key), seconds)
        # A sibling may have failed after a sample had taken its step.
        stepped = [sample for sample in stepped if not sample.generation.ended]
        self._report(stepped, self._costs.seconds(key, work) / work)
        now = self._clock()
        # Before any sample leaves: a key that is no longer there would pay nothing for its last step.
        alone = self._costs.seconds(key, first)
        self._classes.charge(batch[0], key, now - started, now, alone)
        for sample in stepped:
            if sample.done:
                sample.denoised_at = stepped_at
                self._classes.of(sample.generation).remove(sample)
                self._decoding.add(sample)
            elif sample.key != key:
                self._classes.of(sample.generation).move(sample)
        return seconds

    def _report(self, stepped: list[Sample], row_seconds: float) -> None:
        """Tells requests of their steps; who wants to look on the way pays for it as for steps."""
        for sample in stepped:
            if seconds := self._reports.stepped(sample):
                scheduler = self._classes.of(sample.generation)
                scheduler.charge_owner(sample, seconds / row_seconds)

    def _joined(self, batch: list[Sample]) -> list[Sample]:
        """The batch with its new samples started, less those that fail, or whose prompts have to wait for a tick."""
        new = [sample for sample in batch if sample not in self._started]
        if new:
            self._encode_new(batch, new)
            self._attempt.all(
                [sample for sample in new if sample.encoded_at is not None], self._start
            )
        # A failed sample takes its whole request with it, siblings in this batch included.
        return [sample for sample in batch if sample in self._started]

    def _encode_new(self, batch: list[Sample], new: list[Sample]) -> None:
        """Encodes what does not keep others waiting for long; those in the background keep no interactive ones."""
        share = SHARE_BESIDE_STEPS * self._costs.seconds(batch[0].key, sum(s.work for s in batch))
        foremost = [sample for sample in new if not sample.background]
        others = any(not sample.background for sample in self._started)
        self._encode(foremost, share if others else float("inf"))
        behind = [sample for sample in new if sample.background]
        if behind and not batch[0].background:
            started = self._clock()
            self._encode(behind, 0.0)
            self._classes.pay(self._clock() - started)
        else:
            self._encode(behind, share)

    def _encode(self, samples: list[Sample], budget: float) -> None:
        """Encodes prompts, in chunks, until the time is used up; at least one chunk."""
        while samples:
            each = self._costs.encode_seconds(samples[0].key)
            count = encoded_at_once(samples, each, budget, self._model)
            chunk, samples = samples[:count], samples[count:]
            work = sum(sample.encoding for sample in chunk)
            self._predicted += work * each
            started = self._clock()
            encoded = self._attempt.all(chunk, self._model.encode)
            now = self._clock()
            if len(encoded) == len(chunk) and chunk[0].generation.request.image is None:
                self._costs.observe_encode(chunk[0].key, work, now - started)
            for sample, unread in encoded:
                sample.started_at, sample.encoded_at = started, now
                sample.generation.unread = unread
            budget -= now - started
            if budget <= 0:
                return

    def _start(self, samples: Sequence[Sample]) -> list[None]:
        self._model.start(samples)
        self._started.update(samples)
        return [None] * len(samples)

    def _advance(self, predictions: list[tuple[Sample, Any]]) -> list[Sample]:
        """Takes the step of each sample; those that took it."""
        alive = [each for each in predictions if not each[0].generation.ended]
        samples = [sample for sample, _ in alive]
        if not alive:
            return []
        try:
            # Not tried again: a sampler that was interrupted has already moved its history.
            errors = self._model.advance(samples, [prediction for _, prediction in alive])
        except DeviceLost:
            raise
        except Exception as error:
            errors = [error] * len(samples)
        stepped = []
        for sample, failure in zip(samples, errors, strict=True):
            if failure:
                self._blame(sample, failure)
            elif not sample.generation.ended:
                sample.step += 1
                stepped.append(sample)
        return stepped

    # Decoding

    def _decoded(self, pictures: Sequence[tuple[Sample, Pixels]], seconds: float) -> None:
        """Hands out the pictures of a chunk."""
        self._observer.decoded(len(pictures), seconds)
        for sample, pixels in pictures:
            if not sample.generation.ended:
                self._deliver(sample, pixels, seconds)

    def _deliver(self, sample: Sample, pixels: Pixels, decode_seconds: float) -> None:
        generation = sample.generation
        started, encoded = sample.started_at or 0.0, sample.encoded_at or 0.0
        timings = Timings(
            queued=started - generation.admitted_at,
            encoding=encoded - started,
            denoising=(sample.denoised_at or 0.0) - encoded,
            decoding=decode_seconds,
        )
        self._observer.finished(timings)
        self._emit(generation, GeneratedImage(sample.index, sample.seed, pixels, timings))
        self._out(sample)

    def _out(self, sample: Sample) -> None:
        """Takes out a picture that is drawn or never will be, and ends the request with the last of them."""
        generation = sample.generation
        generation.samples.remove(sample)
        self._release(sample)
        generation.pending -= 1
        if generation.pending:
            return
        if generation.dropped:
            self._end(generation, failures.unfinished(generation))
        else:
            self._end(generation, Completed(*generation.unread))

    # Ending

    def _expire(self) -> None:
        """Ends what its deadline has passed; entries of requests that have ended are dropped on the way."""
        now = self._clock()
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].ended):
            _, _, generation = heapq.heappop(self._deadlines)
            if not generation.ended:
                self._end(generation, failures.unfinished(generation))

    def _blame(self, sample: Sample, error: Exception) -> None:
        """Ends the request of a sample that fails even when it stands alone."""
        if not sample.generation.ended:
            self._end(sample.generation, failures.outcome_of(error, sample.generation.request))

    def _end(
        self,
        generation: Generation,
        outcome: Completed | Text2ImageError,
        counter: str | None = None,
    ) -> None:
        """The one place where a request ends; frees all it held."""
        generation.ended = True
        self._active.discard(generation)
        for sample in generation.samples:
            if sample in self._classes:
                self.counters["steps_saved"] += sample.remaining
                self._classes.of(generation).remove(sample)
            self._decoding.discard(sample)
            self._release(sample)
        generation.samples.clear()
        self.counters[counter or _counter_of(outcome)] += 1
        self._emit(generation, outcome)

    def _release(self, sample: Sample) -> None:
        """Frees what a sample holds; the model is told once, if it has started it."""
        if sample in self._started:
            self._started.remove(sample)
            try:
                self._model.release(sample)
            except DeviceLost:
                raise
            except Exception:
                # It must not keep its request from ending.
                logger.exception("what a sample held could not be released")
        sample.state = None


def _counter_of(outcome: Completed | Text2ImageError) -> str:
    if isinstance(outcome, Completed):
        return "completed"
    return "cancelled" if isinstance(outcome, Cancelled | DeadlineExceeded) else "failed"
