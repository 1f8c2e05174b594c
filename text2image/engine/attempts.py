"""Work for many samples at once that fails for none but those that make it fail."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from text2image.engine.costs import StepCosts
from text2image.engine.models.contract import DeviceLost, Model, OutOfMemory
from text2image.engine.sample import Sample

logger = logging.getLogger(__name__)

R = TypeVar("R")


class Attempts:
    """Tries what a model does for samples, with as many at once as it can."""

    def __init__(
        self,
        model: Model,
        costs: StepCosts,
        counters: Counter[str],
        blame: Callable[[Sample, Exception], None],
    ) -> None:
        """`blame` ends a sample that fails even when it stands alone."""
        self._model = model
        self._costs = costs
        self._counters = counters
        self._blame = blame

    def all(
        self,
        samples: Sequence[Sample],
        work: Callable[[Sequence[Sample]], Sequence[R]],
        *,
        last_try: bool = False,
    ) -> list[tuple[Sample, R]]:
        """Does the work for all, or in halves until the samples that make it fail stand alone and are ended."""
        samples = [sample for sample in samples if not sample.generation.ended]
        if not samples:
            return []
        if work == self._model.predict:
            self._counters["batches"] += 1
        try:
            return list(zip(samples, work(samples), strict=True))
        except DeviceLost:
            raise
        except OutOfMemory as error:
            self._model.free_memory()
            self._counters["out_of_memory"] += 1
            if work == self._model.predict:
                self._costs.lower_cap(samples[0].key, sum(sample.rows for sample in samples))
            failure: Exception = error
        except Exception as error:
            failure, last_try = error, True
        if len(samples) == 1 and last_try:
            self._blame(samples[0], failure)
            return []
        self._counters["retries"] += 1
        if len(samples) == 1:
            # Memory that others held may have come free by now.
            return self.all(samples, work, last_try=True)
        logger.warning("a batch of %d failed and is tried in halves: %s", len(samples), failure)
        half = len(samples) // 2
        return self.all(samples[:half], work) + self.all(samples[half:], work)
