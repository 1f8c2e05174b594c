"""Random arrivals, cancellations, deadlines, poison and memory limits: invariants 2, 4, 5 and 6 hold in all of them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles import POISON, TimedModel, make_request
from tests.harness import Harness
from text2image.core.errors import Cancelled, DeadlineExceeded, Internal, Unavailable
from text2image.core.messages import Completed
from text2image.engine.sample import Generation


@dataclass(frozen=True)
class Submit:
    steps: int
    n: int
    guided: bool
    large: bool
    poisoned: bool
    seconds: float


@dataclass(frozen=True)
class Cancel:
    which: int


@dataclass(frozen=True)
class Tick:
    times: int


submits = st.builds(
    Submit,
    steps=st.integers(1, 12),
    n=st.integers(1, 4),
    guided=st.booleans(),
    large=st.booleans(),
    poisoned=st.sampled_from([False] * 7 + [True]),
    seconds=st.sampled_from([0.05, 0.5, 2.0, 1e6, 1e6]),
)
actions = st.lists(
    st.one_of(
        submits, submits, st.builds(Cancel, st.integers(0, 30)), st.builds(Tick, st.integers(1, 5))
    ),
    max_size=40,
)


def play(
    harness: Harness, script: list[object]
) -> tuple[dict[Generation, Submit], set[Generation]]:
    """Runs a script to its end; what was admitted, and what was cancelled while it was alive."""
    admitted: dict[Generation, Submit] = {}
    cancelled: set[Generation] = set()
    for number, action in enumerate(script):
        match action:
            case Submit():
                side = 256 if action.large else 128
                request = make_request(
                    POISON if action.poisoned else "a cat",
                    steps=action.steps,
                    n=action.n,
                    seed=number * 10,
                    guidance_scale=5.0 if action.guided else 0.0,
                    width=side,
                    height=side,
                )
                with suppress(Unavailable, DeadlineExceeded):
                    admitted[harness.submit(request, seconds=action.seconds)] = action
            case Cancel(which) if admitted:
                generation = list(admitted)[which % len(admitted)]
                if not generation.ended:
                    cancelled.add(generation)
                harness.loop.cancel(generation)
            case Tick(times):
                for _ in range(times):
                    harness.loop.tick()
    harness.finish()
    return admitted, cancelled


@settings(max_examples=300)
@given(actions, st.sampled_from([3, 8, 10**9]), st.sampled_from([2, 8, 32]))
def test_invariants_4_5_6_every_admitted_request_ends_once_and_neighbours_are_spared(
    script: list[object], memory_rows: int, max_rows: int
) -> None:
    harness = Harness(TimedModel(memory_rows=memory_rows), max_rows=max_rows, max_seconds=30)
    admitted, cancelled = play(harness, script)
    for generation, asked in admitted.items():
        ending = harness.ending(generation)
        images = harness.images(generation)
        if isinstance(ending, Completed):
            assert sorted(image.index for image in images) == list(range(asked.n))
            assert {image.pixels.rgb[1] for image in images} == {asked.steps}
        if generation in cancelled:
            assert isinstance(ending, Cancelled)
        elif asked.poisoned:
            assert isinstance(ending, Internal | DeadlineExceeded | Unavailable)
        elif asked.seconds >= 1e6:
            assert isinstance(ending, Completed), "a neighbour's failure or memory reached it"
        else:
            assert isinstance(ending, Completed | DeadlineExceeded | Unavailable)
    counters = harness.loop.counters
    ends = ("completed", "failed", "cancelled", "dropped")
    assert sum(counters[name] for name in ends) == len(admitted)
    assert harness.backlog.samples() == 0
    assert abs(harness.backlog.seconds()) < 1e-9
    assert harness.model.released == dict.fromkeys(harness.model.started, 1)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 10), st.integers(0, 4)), min_size=1, max_size=12))
def test_invariant_2_with_room_every_sample_steps_at_every_tick_from_joining_to_its_last(
    arrivals: list[tuple[int, int]],
) -> None:
    harness = Harness(max_rows=64)
    joined: dict[Generation, int] = {}
    steps_of: dict[Generation, int] = {}
    for steps, ticks in arrivals:
        generation = harness.submit(make_request(steps=steps, guidance_scale=0.0))
        joined[generation] = len(harness.model.batches)
        steps_of[generation] = steps
        for _ in range(ticks):
            harness.loop.tick()
    harness.finish()
    for generation, first in joined.items():
        present = [
            number
            for number, batch in enumerate(harness.model.batches)
            if any(sample.generation is generation for sample in batch)
        ]
        assert present == list(range(first, first + steps_of[generation]))
