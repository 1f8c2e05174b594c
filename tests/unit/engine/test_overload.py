"""Three times what can be served, on a clock of its own: whatever is begun ends in a picture, and nothing is wasted."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.doubles import TimedModel, make_request
from tests.harness import Harness
from text2image.core.errors import DeadlineExceeded, Unavailable
from text2image.core.messages import Completed, Request, Share
from text2image.gateway.refusals import Kind, Refusals

PATIENCE = 10.0
STORM_SECONDS = 120.0
# Before them the batches are not yet as full as they will be.
RAMP_SECONDS = 20.0
IN_FLIGHT = 48


def make_harness(slowdown: float) -> Harness:
    """A model whose steps take `slowdown` times what was measured before the first request, and are not all alike."""
    model = TimedModel(
        overhead=0.02, row_seconds=0.006, decode_time=0.04, decode_chunk=1, noise=0.15
    )
    harness = Harness(model, max_rows=16)
    model.slowdown = slowdown
    return harness


@dataclass
class Mix:
    """Requests drawn at random from some step counts, sides and pictures per request."""

    steps: tuple[int, ...] = (20,)
    sides: tuple[int, ...] = (128,)
    most: int = 1
    slowdown: float = 1.0

    def requests(self) -> Callable[[], Request]:
        generator = random.Random(11)

        def make() -> Request:
            side = generator.choice(self.sides)
            return make_request(
                steps=generator.choice(self.steps),
                width=side,
                height=side,
                n=generator.randint(1, self.most),
                seed=generator.randrange(10**6),
            )

        return make


def saturation(mix: Mix) -> float:
    """Pictures per second when there is always more to do than fits in a batch, and nobody minds waiting."""
    harness, make = make_harness(mix.slowdown), mix.requests()
    counted: list[tuple[float, int]] = []
    while harness.clock() < 2 * RAMP_SECONDS + STORM_SECONDS:
        while harness.backlog.samples() < IN_FLIGHT:
            harness.submit(make())
        harness.loop.tick()
        counted.append((harness.clock(), harness.loop.counters["sample_steps"]))
    begin = next(number for number, (at, _) in enumerate(counted) if at >= RAMP_SECONDS)
    (first, before), (last, after) = counted[begin], counted[-1]
    done = [each for each in harness.outcomes if each.ended]
    steps = sum(each.request.steps * each.request.n for each in done)
    return (after - before) / (last - first) * sum(each.request.n for each in done) / steps


def storm(mix: Mix, harness: Harness, rate: float) -> tuple[int, int]:
    """Poisson arrivals for two minutes, through a gateway that remembers what is refused.

    Returns how many were refused, and how many of them by the engine itself.
    """
    make, generator = mix.requests(), random.Random(7)
    refusals = Refusals(harness.clock)
    refused, asked, due = 0, 0, 0.0

    def ask(request: Request) -> None:
        nonlocal asked
        kind = Kind.of(request, PATIENCE, Share())
        refusals.check(kind)
        try:
            harness.submit(request, seconds=PATIENCE)
        except Unavailable as refusal:
            asked += 1
            refusals.keep(kind, refusal)
            raise

    while harness.clock() < STORM_SECONDS:
        while due <= harness.clock():
            try:
                ask(make())
            except (Unavailable, DeadlineExceeded):
                refused += 1
            due += generator.expovariate(rate)
        if harness.loop.idle:
            harness.clock.now = due
        else:
            harness.loop.tick()
    return refused, asked


MIXES = {
    "alike": Mix(),
    "half as slow again as measured": Mix(slowdown=1.5),
    "steps": Mix(steps=(10, 20, 40)),
    "sizes": Mix(sides=(128, 256)),
    "steps and sizes": Mix(steps=(10, 20, 40), sides=(64, 128, 192)),
    "several pictures": Mix(most=4),
}


@pytest.mark.parametrize("name", MIXES)
def test_invariant_4_at_three_times_capacity_goodput_stays_and_what_is_begun_is_finished(
    name: str,
) -> None:
    mix = MIXES[name]
    capacity = saturation(mix)
    per_request = (1 + mix.most) / 2
    harness = make_harness(mix.slowdown)
    refused, asked = storm(mix, harness, 3 * capacity / per_request)
    drawn = {generation: len(harness.images(generation)) for generation in harness.predicted}
    harness.finish()
    endings = {generation: harness.ending(generation) for generation in drawn}
    good = sum(drawn[each] for each, ending in endings.items() if isinstance(ending, Completed))
    lost = sum(isinstance(ending, DeadlineExceeded) for ending in endings.values())
    assert refused > len(drawn) / 3
    assert asked < refused
    assert good / STORM_SECONDS >= 0.95 * capacity
    assert lost <= 0.01 * len(drawn)


@pytest.mark.parametrize("slowdown", [1.0, 1.5])
def test_after_the_storm_a_lone_request_takes_the_lone_time(slowdown: float) -> None:
    harness = make_harness(slowdown)
    harness.submit(make_request(steps=20))
    harness.finish()
    lone = harness.clock()
    storm(Mix(slowdown=slowdown), harness, 9.0)
    harness.finish()
    before = harness.clock()
    after = harness.submit(make_request(steps=20), seconds=2 * lone)
    harness.finish()
    assert harness.clock() - before == pytest.approx(lone, rel=0.2)
    assert isinstance(harness.ending(after), Completed)
