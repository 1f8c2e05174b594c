"""What is told of steps: to a request as often as it asks, but no more often than one can look; and to metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable

from text2image.core.messages import Pixels, Progress, Timings
from text2image.engine.models.contract import DeviceLost, Model
from text2image.engine.sample import Generation, Sample

logger = logging.getLogger(__name__)

# Of all pictures of a request together. One that asks for no more than so many in all gets them all, and the last step
# of each picture is always told.
REPORTS_PER_SECOND = 5


class Observer:
    """Told what the loop does; metrics derive from it. Called from the engine's thread."""

    def stepped(self, samples: int, rows: int, cap: int, seconds: float) -> None:
        """One forward pass and the scheduler steps after it, in a batch that has `cap` rows when it is full."""

    def decoded(self, samples: int, seconds: float) -> None:
        """One chunk of pictures."""

    def finished(self, timings: Timings) -> None:
        """One picture is out."""


class Reports:
    """Emits `Progress` after steps. Called from the engine's thread."""

    def __init__(
        self,
        model: Model,
        clock: Callable[[], float],
        emit: Callable[[Generation, Progress], None],
    ) -> None:
        self._model = model
        self._clock = clock
        self._emit = emit

    def stepped(self, sample: Sample) -> float:
        """Reports a sample's step, if that was asked for and is due; the seconds that its preview took."""
        generation, options = sample.generation, sample.generation.options
        if sample.done:
            if options.progress_every:
                self._emit(generation, Progress(sample.index, sample.steps, sample.steps, None))
            return 0.0
        now, step = self._clock(), sample.steps_after(sample.step)
        looked_at = _due(sample, options.preview_every, sample.previewed, step, now)
        if not looked_at and not _due(sample, options.progress_every, sample.reported, step, now):
            return 0.0
        sample.reported, sample.reported_at, generation.reported_at = step, now, now
        if not looked_at:
            self._emit(generation, Progress(sample.index, step, sample.steps, None))
            return 0.0
        sample.previewed = step
        preview = self._preview(sample)
        self._emit(generation, Progress(sample.index, step, sample.steps, preview))
        return self._clock() - now

    def _preview(self, sample: Sample) -> Pixels | None:
        try:
            return self._model.preview(sample)
        except DeviceLost:
            raise
        except Exception:
            # A picture is worth more than the look at it on the way.
            logger.exception("a preview could not be drawn")
            return None


def _due(sample: Sample, every: int, last: int, step: int, now: float) -> bool:
    """Whether a step is to be reported that comes `step - last` after the one that was.

    A multiple of `every` lies between them if so; a pass may be less than a step, or several.
    """
    if not every or step // every == last // every:
        return False
    generation = sample.generation
    in_all = (min(sample.steps, sample.passes) - 1) // every
    if generation.request.n * in_all <= REPORTS_PER_SECOND:
        return True
    if now < generation.reported_at + 1 / REPORTS_PER_SECOND:
        return False
    # Pictures of one request take turns, or the first one would have all the reports.
    stepping = (each for each in generation.samples if each.step and not each.done)
    return all(sample.reported_at <= each.reported_at for each in stepping)
