"""A device that decodes beside its steps stalls none of them, and every picture comes all the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from tests.doubles import NATIVE, Clock, TimedModel, make_request
from tests.harness import Harness
from text2image.core.errors import Cancelled, Internal
from text2image.core.messages import Completed, GeneratedImage, Pixels
from text2image.engine.memory import MemoryGuard
from text2image.engine.models.contract import DeviceLost
from text2image.engine.sample import Sample


@dataclass
class Drawn:
    """A picture that is there at a certain time; to wait for it moves the clock."""

    clock: Clock
    at: float
    picture: Pixels
    failure: Exception | None = None

    def ready(self) -> bool:
        return self.clock.now >= self.at

    def pixels(self) -> Pixels:
        self.clock.now = max(self.clock.now, self.at)
        if self.failure:
            raise self.failure
        return self.picture


@dataclass
class Beside(TimedModel):
    """Decodes beside its steps, a chunk in `decoding` seconds; pictures of some seeds cannot be had."""

    decoding: float = 1.0
    failures: dict[int, Exception] = field(default_factory=dict)
    began: list[float] = field(default_factory=list)

    def decode(self, samples: Sequence[Sample]) -> list[Any]:
        before = self.clock.now
        pictures = super().decode(samples)
        self.clock.now = before
        self.began.append(before)
        at = before + self.decoding
        return [
            Drawn(self.clock, at, picture, self.failures.get(sample.seed))
            for sample, picture in zip(samples, pictures, strict=True)
        ]


def test_steps_go_on_while_pictures_are_decoded_and_these_come_when_they_are_ready() -> None:
    harness = Harness(Beside())
    long = harness.submit(make_request(steps=200, seed=1))
    short = harness.submit(make_request(steps=2, seed=2))
    harness.loop.tick()
    harness.loop.tick()
    done_at, steps = harness.clock(), len(harness.model.batches)
    assert harness.loop.decoding == 1
    while not short.ended:
        before = harness.clock()
        harness.loop.tick()
        assert harness.clock() - before < 0.1, "a step was stalled"
    assert isinstance(harness.ending(short), Completed)
    assert done_at + 1.0 <= harness.clock() < done_at + 1.1
    assert len(harness.model.batches) > steps + 10
    assert not long.ended


def test_with_nothing_left_to_step_it_waits_instead_of_looking_again_and_again() -> None:
    harness = Harness(Beside())
    generation = harness.submit(make_request(steps=3, n=2))
    for _ in range(3):
        assert not generation.ended
        harness.loop.tick()
    assert isinstance(harness.ending(generation), Completed)
    assert harness.loop.idle


def test_one_chunk_is_decoded_at_a_time() -> None:
    harness = Harness(Beside(decode_chunk=2))
    harness.submit(make_request(steps=200))
    short = [harness.submit(make_request(steps=2, seed=seed)) for seed in range(5)]
    while not all(each.ended for each in short):
        harness.loop.tick()
    began = harness.model.began
    assert [len(chunk) for chunk in harness.model.decoded] == [2, 2, 1]
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(began))


def test_invariant_7_what_is_cancelled_while_it_is_decoded_ends_at_once_and_is_thrown_away() -> (
    None
):
    harness = Harness(Beside())
    harness.submit(make_request(steps=200))
    gone, kept = (harness.submit(make_request(steps=1, seed=seed)) for seed in (1, 2))
    harness.loop.tick()
    assert harness.loop.decoding == 2
    harness.loop.cancel(gone)
    assert isinstance(harness.ending(gone), Cancelled)
    assert harness.loop.decoding == 1
    while not kept.ended:
        harness.loop.tick()
    harness.finish()
    assert not harness.images(gone)
    assert len(harness.images(kept)) == 1
    assert set(harness.model.released.values()) == {1}


def test_invariant_6_a_picture_that_cannot_be_had_fails_its_own_request_alone() -> None:
    harness = Harness(Beside(failures={2: ValueError("numbers that are not finite")}))
    harness.submit(make_request(steps=60))
    generations = [harness.submit(make_request(steps=1, seed=seed)) for seed in (1, 2, 3)]
    harness.finish()
    endings = [type(harness.ending(each)) for each in generations]
    assert endings == [Completed, Internal, Completed]


def test_a_lost_device_is_told_from_a_picture_that_cannot_be_had() -> None:
    harness = Harness(Beside(failures={0: DeviceLost("an illegal memory access")}))
    harness.submit(make_request(steps=1))
    with pytest.raises(DeviceLost):
        harness.finish()


def test_pictures_that_do_not_fit_beside_a_step_are_waited_for() -> None:
    class Memory:
        """Room for a step or two pictures, not for both at once."""

        def free(self) -> int:
            return 100

        def used(self) -> int:
            return 0

        def restart(self) -> int:
            return 0

        def peak(self) -> int:
            return self.now

        now = 0

    memory = Memory()
    guard = MemoryGuard(memory)
    for rows in (1, 2, 4):
        memory.now = 20 * rows
        guard.learn_step(NATIVE, rows)
    memory.now = 50
    guard.learn_decode()
    guard.refresh(0.0)
    assert guard.pictures(NATIVE) == 2
    assert guard.pictures(NATIVE, (NATIVE, 2)) == 1
    assert guard.pictures(NATIVE, (NATIVE, 4)) == 0
    harness = Harness(Beside(), memory=guard)
    long = harness.submit(make_request(steps=50))
    short = harness.submit(make_request(steps=1, guidance_scale=1.0))
    harness.loop.tick()
    assert isinstance(harness.ending(short), Completed)
    assert not long.ended


def test_what_was_decoded_beside_steps_says_nothing_of_what_pictures_cost() -> None:
    harness = Harness(Beside(decoding=3.0))
    known = harness.costs.decode_seconds(NATIVE)
    harness.submit(make_request(steps=200))
    short = harness.submit(make_request(steps=1))
    while not short.ended:
        harness.loop.tick()
    assert harness.costs.decode_seconds(NATIVE) == known
    (image,) = (out for out in harness.outcomes[short] if isinstance(out, GeneratedImage))
    assert image.timings.decoding >= 3.0
