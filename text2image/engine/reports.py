"""What a request is told of its steps: progress as often as it asks, and previews no more often than one can look."""

from __future__ import annotations

import logging
from collections.abc import Callable

from text2image.core.messages import Pixels, Progress
from text2image.engine.models.contract import DeviceLost, Model
from text2image.engine.sample import Generation, Sample

logger = logging.getLogger(__name__)

# Of all pictures of a request together. One that asks for no more than so many in all gets them all.
PREVIEWS_PER_SECOND = 5


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
        """Reports a sample's step, if that was asked for; the seconds that its preview took."""
        started = self._clock()
        every, total = sample.generation.options.progress_every, sample.steps
        before = sample.steps_after(sample.step - 1)
        step = total if sample.done else sample.steps_after(sample.step)
        due = self._preview_due(sample, before, step, started)
        preview = self._preview(sample) if due else None
        if due or (every and (sample.done or _passed(every, before, step))):
            self._emit(sample.generation, Progress(sample.index, step, total, preview))
        return self._clock() - started if due else 0.0

    @staticmethod
    def _preview_due(sample: Sample, before: int, step: int, now: float) -> bool:
        generation = sample.generation
        every = generation.options.preview_every
        if sample.done or not every or not _passed(every, before, step):
            return False
        if generation.request.n * ((sample.steps - 1) // every) <= PREVIEWS_PER_SECOND:
            return True
        if now < generation.previewed_at + 1 / PREVIEWS_PER_SECOND:
            return False
        # Pictures of one request take turns, or the first one would have all the previews.
        stepping = (each for each in generation.samples if each.step and not each.done)
        return all(sample.previewed_at <= each.previewed_at for each in stepping)

    def _preview(self, sample: Sample) -> Pixels | None:
        sample.previewed_at = sample.generation.previewed_at = self._clock()
        try:
            return self._model.preview(sample)
        except DeviceLost:
            raise
        except Exception:
            # A picture is worth more than the look at it on the way.
            logger.exception("a preview could not be drawn")
            return None


def _passed(every: int, before: int, step: int) -> bool:
    """Whether a multiple of `every` lies between; a pass may be less than a step, or several."""
    return step // every > before // every
