"""Runs the model once at several batch sizes, so that the first client waits for nothing and the costs are known."""

from __future__ import annotations

import logging
from collections.abc import Callable

from text2image.core.messages import Request, StreamOptions
from text2image.engine.costs import MAX_STEP_SECONDS, StepCosts
from text2image.engine.memory import MemoryGuard
from text2image.engine.models.contract import Model, OutOfMemory
from text2image.engine.sample import Generation, Sample

logger = logging.getLogger(__name__)

# Each size is measured in several rounds and its best counts: what disturbs a measurement only ever makes it longer,
# and seldom lasts for a whole round.
ROUNDS = 3


def measure(
    model: Model,
    memory: MemoryGuard,
    *,
    max_rows: int,
    clock: Callable[[], float],
    report: Callable[[str], None],
) -> StepCosts:
    """Step times at 1, 2, 4, ... rows at the model's own size, as far as larger batches fit and are not too slow.

    Args:
        memory: learns what steps take, and ends the series before it is full.
        max_rows: a cap from the settings; 0 for none.

    Raises:
        OutOfMemory: not even one picture fits.
    """
    highest = min(model.max_rows, max_rows) if max_rows else model.max_rows
    batches, points = _grow(model, memory, highest, clock, report)
    report("measuring once more")
    for _ in range(ROUNDS - 1):
        for rows, samples in batches.items():
            if points[rows] <= MAX_STEP_SECONDS:
                points[rows] = min(points[rows], _timed(lambda s=samples: model.predict(s), clock))  # type: ignore[misc]
    one = batches[1]
    memory.restart()
    model.decode(one)
    memory.learn_decode()
    decode_seconds = min(_timed(lambda: model.decode(one), clock) for _ in range(ROUNDS))
    costs = StepCosts(
        one[0].group, points, max_rows=highest, decode_seconds=decode_seconds, memory=memory
    )
    logger.info(
        "steps measured (rows: ms): %s; decoding %.1f ms; batch cap %d rows",
        ", ".join(f"{rows}: {1000 * seconds:.1f}" for rows, seconds in points.items()),
        1000 * decode_seconds,
        costs.cap(one[0].group),
    )
    return costs


def _grow(
    model: Model,
    memory: MemoryGuard,
    highest: int,
    clock: Callable[[], float],
    report: Callable[[str], None],
) -> tuple[dict[int, list[Sample]], dict[int, float]]:
    """Batches of doubling size and a first measurement of each, until one is too slow or too large."""
    batches: dict[int, list[Sample]] = {}
    points: dict[int, float] = {}
    rows = 1
    memory.restart()
    while rows <= highest:
        memory.refresh(clock())
        # One step alone does not tell what rows take from what any step does.
        if rows > 2 and rows > memory.rows(batches[1][0].group):
            break
        report(f"measuring a step of {rows} rows")
        samples = _samples(model, rows)
        try:
            model.prepare(samples)
            # The first run pays for what is set up once.
            model.predict(samples)
            points[rows] = _timed(lambda s=samples: model.predict(s), clock)  # type: ignore[misc]
        except OutOfMemory:
            model.free_memory()
            if not points:
                raise
            break
        memory.learn_step(samples[0].group, rows)
        batches[rows] = samples
        if points[rows] > MAX_STEP_SECONDS:
            break
        rows *= 2
    return batches, points


def _samples(model: Model, rows: int) -> list[Sample]:
    """Samples without guidance, one row each, at the model's own size."""
    info = model.info
    request = Request(
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


def _timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started
