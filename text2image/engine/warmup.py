"""Runs the model once at several batch sizes, so that the first client waits for nothing and the costs are known."""

from __future__ import annotations

import logging
from collections.abc import Callable

from text2image.engine.costs import StepCosts, worth_growing
from text2image.engine.models.contract import Model, OutOfMemory
from text2image.engine.sample import Generation, Sample
from text2image.messages import GenerationRequest, StreamOptions

logger = logging.getLogger(__name__)

# The best of a few is taken: whatever disturbs a measurement only ever makes it longer.
REPEATS = 3
# A batch whose step takes longer is not measured: it would make cancelling and joining sluggish.
MAX_STEP_SECONDS = 2.0


def measure(
    model: Model, *, max_rows: int, clock: Callable[[], float], report: Callable[[str], None]
) -> StepCosts:
    """Step times at 1, 2, 4, ... rows at the model's own size, as far as larger batches pay off and fit.

    Args:
        max_rows: a cap from the settings; 0 for none.

    Raises:
        OutOfMemory: not even one picture fits.
    """
    highest = min(model.max_rows, max_rows) if max_rows else model.max_rows
    points: dict[int, float] = {}
    rows = 1
    while rows <= highest:
        report(f"measuring a step of {rows} rows")
        samples = _samples(model, rows)
        try:
            model.prepare(samples)
            points[rows] = _best(lambda batch=samples: model.predict(batch), clock)  # type: ignore[misc]
        except OutOfMemory:
            model.free_memory()
            if not points:
                raise
            break
        if points[rows] > MAX_STEP_SECONDS or not worth_growing(points):
            break
        rows *= 2
    report("measuring the decoder")
    one = _samples(model, 1)
    model.prepare(one)
    decode_seconds = _best(lambda: model.decode(one), clock)
    costs = StepCosts(
        one[0].group, points, max_rows=max_rows or model.max_rows, decode_seconds=decode_seconds
    )
    logger.info(
        "steps measured (rows: ms): %s; decoding %.1f ms; batch cap %d rows",
        ", ".join(f"{rows}: {1000 * seconds:.1f}" for rows, seconds in points.items()),
        1000 * decode_seconds,
        costs.cap(one[0].group),
    )
    return costs


def _samples(model: Model, rows: int) -> list[Sample]:
    """Samples without guidance, one row each, at the model's own size."""
    info = model.info
    request = GenerationRequest(
        prompt="warm-up",
        negative_prompt="",
        width=info.width,
        height=info.height,
        steps=info.steps,
        guidance_scale=1.0,
        seed=0,
        n=rows,
        sampler=info.sampler,
    )
    generation = Generation.create(
        request,
        StreamOptions(),
        group=model.group_of(request),
        rows=model.rows_of(request),
        now=0.0,
        deadline=0.0,
    )
    return generation.samples


def _best(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of the fastest run after a first one that pays for what is set up once."""
    work()
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < MAX_STEP_SECONDS:
        started = clock()
        work()
        times.append(clock() - started)
    return min(times)
