"""Runs a model once at several batch sizes, so that the first client waits for nothing and the costs are known."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias, TypeVar

from text2image.core.errors import ContentBlocked
from text2image.core.messages import ModelInfo, Request, StreamOptions
from text2image.engine.costs import MAX_STEP_SECONDS, StepCosts
from text2image.engine.memory import MemoryGuard
from text2image.engine.models.contract import Model, OutOfMemory, pixels_of
from text2image.engine.sample import Generation, Sample

logger = logging.getLogger(__name__)

# Each size is measured in several rounds and its best counts: what disturbs a measurement only ever makes it longer,
# and seldom lasts for a whole round.
ROUNDS = 3
# What a model's warm-up takes of the time while another one steps.
SHARE_BESIDE_STEPS = 0.08
# Seconds of a step beyond which no larger batch is measured beside others: each is a pause for them. Probes find what
# is better, if anything is.
LONGEST_BESIDE = 0.15

R = TypeVar("R")
Pieces: TypeAlias = Generator[None, None, R]


def measure(
    model: Model,
    memory: MemoryGuard,
    *,
    max_rows: int,
    clock: Callable[[], float],
    report: Callable[[str], None],
) -> StepCosts:
    """All of `measuring` at once."""
    pieces = measuring(model, memory, max_rows=max_rows, clock=clock, report=report)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            costs: StepCosts = end.value
            return costs


def measuring(
    model: Model,
    memory: MemoryGuard,
    *,
    max_rows: int,
    clock: Callable[[], float],
    report: Callable[[str], None],
    beside: bool = False,
) -> Pieces[StepCosts]:
    """Step times of 1, 2, 4, ... samples of the model's own size, as far as larger batches fit and are not too slow.

    Yields after each piece of work, none of which is longer than a step, so that others may step in between.

    Args:
        memory: learns what steps take, and ends the series before it is full.
        max_rows: a cap from the settings; 0 for none.
        beside: others step in between, so it is measured once, and no batch whose step would hold them up for long.

    Raises:
        OutOfMemory: not even one picture fits.
        ValueError: the first picture holds numbers that are not finite, and so would others.
    """
    highest = min(model.max_rows, max_rows) if max_rows else model.max_rows
    rounds, longest = (1, LONGEST_BESIDE) if beside else (ROUNDS, MAX_STEP_SECONDS)
    batches: list[list[Sample]] = []
    try:
        grow = _grow(model, memory, highest, longest, batches, clock, report)
        points, encode_seconds = yield from grow
        report("measuring once more")
        for _ in range(rounds - 1):
            for samples, (work, seconds) in zip(batches, points.items(), strict=False):
                if seconds <= MAX_STEP_SECONDS:
                    points[work] = min(seconds, _timed(lambda s=samples: model.predict(s), clock))  # type: ignore[misc]
                    yield
        one = batches[0]
        decode_seconds = yield from _time_decoding(model, memory, one, rounds, clock)
    finally:
        for sample in (each for batch in batches for each in batch):
            model.release(sample)
    costs = StepCosts(
        one[0].key,
        points,
        max_rows=highest,
        decode_seconds=decode_seconds,
        encode_seconds=encode_seconds,
        memory=memory,
    )
    _tell(costs, one[0], points)
    return costs


def _tell(costs: StepCosts, sample: Sample, points: dict[float, float]) -> None:
    logger.info(
        "steps measured (rows: ms): %s; encoding %.1f ms, decoding %.1f ms; batch cap %d rows",
        ", ".join(f"{rows:g}: {1000 * seconds:.1f}" for rows, seconds in points.items()),
        1000 * costs.encode_seconds(sample.key),
        1000 * costs.decode_seconds(sample.key),
        costs.cap(sample.key),
    )


def _time_decoding(
    model: Model,
    memory: MemoryGuard,
    samples: list[Sample],
    rounds: int,
    clock: Callable[[], float],
) -> Pieces[float]:
    """Seconds to decode one picture; raises what the first one does."""
    _draw_first(model, samples, memory)
    seconds = float("inf")
    for _ in range(rounds):
        yield
        seconds = min(seconds, _timed(lambda: _decode(model, samples), clock))
    return seconds


def _draw_first(model: Model, samples: list[Sample], memory: MemoryGuard) -> None:
    """Takes a step and decodes what it made, so that no model is ready whose numbers are none."""
    try:
        (failure,) = model.advance(samples, model.predict(samples))
        if failure:
            raise failure
        memory.restart()
        _decode(model, samples)
        memory.learn_decode(_tiled_above(model.info, samples[0]))
    except ValueError as error:
        raise ValueError(
            f"{model.info.id} draws nothing: {error}; its weights hold such numbers, which `python -m text2image "
            f"check` finds, or they are too large for {model.info.dtype}: set T2I_DTYPE=float32 or bfloat16"
        ) from error


def _tiled_above(info: ModelInfo, sample: Sample) -> float:
    """The size, as keys have it, of the largest picture that is decoded whole."""
    request = sample.generation.request
    pixels = request.width * request.height
    return info.tiled_above / pixels * sample.key.size if info.tiled_above else math.inf


def _grow(
    model: Model,
    memory: MemoryGuard,
    highest: int,
    longest: float,
    batches: list[list[Sample]],
    clock: Callable[[], float],
    report: Callable[[str], None],
) -> Pieces[tuple[dict[float, float], float]]:
    """Starts batches of doubling size until one is too slow or too large.

    Returns the seconds of a step by plain rows, as first measured, and those of encoding a prompt.
    """
    points: dict[float, float] = {}
    encoding: list[float] = []
    count = 1
    while True:
        samples = _samples(model, count)
        rows = sum(sample.rows for sample in samples)
        memory.refresh(clock())
        # One step alone does not tell what rows take from what any step does.
        if points and (rows > highest or (count > 2 and rows > memory.rows(samples[0].key))):
            break
        report(f"measuring a step of {rows} rows")
        try:
            encoding.append(_timed(lambda s=samples: model.encode(s), clock))  # type: ignore[misc]
            yield
            # Others may have stepped since the last time.
            memory.restart()
            model.start(samples)
            batches.append(samples)
            # The first run pays for what is set up once.
            model.predict(samples)
            memory.learn_step(samples[0].key, rows)
            yield
            seconds = _timed(lambda s=samples: model.predict(s), clock)  # type: ignore[misc]
            yield
        except OutOfMemory:
            model.free_memory()
            if not points:
                raise
            break
        points[sum(sample.work for sample in samples)] = seconds
        if seconds > longest:
            break
        count *= 2
    return points, min(encoding)


def first_picture(model: Model) -> Pieces[None]:
    """Takes one step and decodes what comes of it, in pieces as `measuring` does.

    Raises:
        ValueError: it holds numbers that are not finite.
        OutOfMemory: it does not fit.
    """
    samples = _samples(model, 1)
    model.encode(samples)
    yield
    model.start(samples)
    try:
        _draw_first(model, samples, MemoryGuard())
    finally:
        for sample in samples:
            model.release(sample)


class Interleaved:
    """Work that is done in pieces beside steps, and takes a fixed share of the time while there are any."""

    def __init__(self, pieces: Pieces[None], clock: Callable[[], float]) -> None:
        self._pieces = pieces
        self._clock = clock
        self._due = float("-inf")

    def advance(self, *, idle: bool) -> bool:
        """Does a piece if its turn has come; whether there are more.

        Args:
            idle: nothing else is to be done.
        """
        started = self._clock()
        if not idle and started < self._due:
            return True
        try:
            next(self._pieces)
        except StopIteration:
            return False
        ended = self._clock()
        self._due = ended + (ended - started) * (1 / SHARE_BESIDE_STEPS - 1)
        return True


def usual_request(info: ModelInfo) -> Request:
    """What asks for a picture of the model's own kind."""
    return Request(
        prompt="",
        negative_prompt="",
        width=info.width,
        height=info.height,
        steps=info.steps,
        guidance_scale=info.guidance_scale,
        seed=0,
        n=1,
        sampler=info.sampler,
        quality=info.quality,
        model=info.id,
    )


def _samples(model: Model, count: int) -> list[Sample]:
    """Samples without guidance at the model's own size, with a prompt that was not encoded before."""
    usual = usual_request(model.info)
    request = replace(usual, prompt=f"warm-up {count}", guidance_scale=1.0, n=count)
    generation = Generation.create(
        request, StreamOptions(), plan=model.plan(request), now=0.0, deadline=0.0
    )
    return generation.samples


def _decode(model: Model, samples: Sequence[Sample]) -> None:
    """Decodes and waits for it, whatever the pictures show."""
    for picture in model.decode(samples):
        with suppress(ContentBlocked):
            pixels_of(picture)


def _timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started
