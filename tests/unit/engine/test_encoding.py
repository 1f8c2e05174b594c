"""Prompts are encoded in a stage of their own, which stalls no steps and is part of every prediction."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from tests.doubles import TimedModel, make_request
from tests.harness import NATIVE, Harness
from tests.init_images import init_image
from text2image.core.messages import Completed, GeneratedImage
from text2image.engine.encoding import ENCODE_CHUNK
from text2image.engine.loop import SHARE_BESIDE_STEPS
from text2image.engine.memory import MemoryGuard
from text2image.engine.sample import Sample
from text2image.engine.warmup import measure


class Scribe(TimedModel):
    """Notes which samples were encoded together."""

    def __init__(self, **costs: float) -> None:
        super().__init__(**costs)
        self.encoded: list[list[Sample]] = []

    def encode(self, samples):  # type: ignore[no-untyped-def]
        self.encoded.append(list(samples))
        return super().encode(samples)


def submit_prompts(harness: Harness, count: int, steps: int = 20) -> None:
    for number in range(count):
        harness.submit(make_request(f"prompt {number}", steps=steps, seed=number))


def test_invariant_9_a_burst_of_new_prompts_stalls_those_who_step_for_less_than_a_step() -> None:
    harness = Harness(Scribe(encode_time=0.05))
    harness.submit(make_request("the first", steps=50))
    harness.loop.tick()
    submit_prompts(harness, 15)
    longest = 0.0
    while len({sample for batch in harness.model.batches for sample in batch}) < 16:
        before = harness.clock()
        harness.loop.tick()
        rows = sum(sample.rows for sample in harness.model.batches[-1])
        step = harness.model.overhead + rows * harness.model.row_seconds
        longest = max(longest, harness.clock() - before - step)
    full = harness.model.overhead + 32 * harness.model.row_seconds
    assert 0.0 < longest <= SHARE_BESIDE_STEPS * full + harness.model.encode_time
    harness.finish()
    assert all(isinstance(harness.ending(each), Completed) for each in harness.predicted)


def test_a_prompt_that_takes_longer_than_a_step_is_encoded_all_the_same() -> None:
    harness = Harness(Scribe(encode_time=3.0))
    harness.submit(make_request("the first", steps=50))
    harness.loop.tick()
    submit_prompts(harness, 3, steps=2)
    harness.finish()
    assert all(isinstance(harness.ending(each), Completed) for each in harness.predicted)
    assert [len(chunk) for chunk in harness.model.encoded] == [1, 1, 1, 1]


def test_prompts_that_cost_little_join_at_the_next_step_in_chunks() -> None:
    model = Scribe()
    harness = Harness(model, max_rows=64)
    harness.submit(make_request("the first", steps=50))
    harness.loop.tick()
    submit_prompts(harness, 20)
    harness.loop.tick()
    assert len(model.batches[-1]) == 21
    assert max(len(chunk) for chunk in model.encoded) == ENCODE_CHUNK


class Reader(Scribe):
    """Takes ten times as long for a prompt of ten words, and says so."""

    def plan(self, request):  # type: ignore[no-untyped-def]
        return replace(super().plan(request), encoding=float(len(request.prompt.split())))

    def encode(self, samples):  # type: ignore[no-untyped-def]
        words = sum(len(sample.generation.request.prompt.split()) for sample in samples)
        self.clock.now += (words - len(samples)) * self.encode_time
        return super().encode(samples)


def test_long_prompts_count_for_as_many_short_ones_as_they_take() -> None:
    model = Reader(encode_time=0.01)
    harness = Harness(model, max_rows=64)
    for number in range(12):
        harness.submit(make_request(f"four words of {number}", seed=number))
    harness.finish()
    assert max(len(chunk) for chunk in model.encoded) == ENCODE_CHUNK // 4
    assert harness.costs.encode_seconds(NATIVE) == pytest.approx(0.01)


def test_pictures_are_encoded_apart_from_prompts_in_turn_and_few_at_once() -> None:
    model = Scribe()
    harness = Harness(model, max_rows=64)
    for number in range(18):
        begun = {"image": init_image(), "strength": 1.0} if 4 <= number < 12 else {}
        harness.submit(make_request(f"prompt {number}", seed=number, **begun))
    harness.loop.tick()
    assert [len(chunk) for chunk in model.encoded] == [4, model.decode_chunk, model.decode_chunk, 6]
    encoded = [sample.seed for chunk in model.encoded for sample in chunk]
    assert encoded == sorted(encoded)


def test_what_a_picture_takes_to_encode_is_not_taken_for_what_a_prompt_takes() -> None:
    harness = Harness(TimedModel(encode_time=0.02))
    harness.model.encode_time = 5.0
    for number in range(20):
        harness.submit(make_request(f"{number}", steps=2, image=init_image(), strength=1.0))
    harness.finish()
    assert harness.costs.encode_seconds(NATIVE) == 0.02


def test_each_sample_is_encoded_once() -> None:
    model = Scribe(encode_time=0.05)
    harness = Harness(model)
    submit_prompts(harness, 40)
    harness.finish()
    encoded = [sample for chunk in model.encoded for sample in chunk]
    assert len(encoded) == len(set(encoded)) == 40


@pytest.mark.parametrize("others", [0, 15, 60])
def test_a_prediction_counts_the_encoding_of_prompts(others: int) -> None:
    harness = Harness(TimedModel(encode_time=1.0))
    submit_prompts(harness, others)
    before = harness.clock()
    generation = harness.submit(make_request("one more", steps=20))
    while not generation.ended:
        harness.loop.tick()
    assert harness.predicted[generation] == pytest.approx(harness.clock() - before, rel=0.3)


def test_what_encoding_takes_is_learned_and_is_no_overhead() -> None:
    harness = Harness(TimedModel(encode_time=0.02))
    assert harness.costs.encode_seconds(NATIVE) == 0.02
    harness.model.encode_time = 0.3
    submit_prompts(harness, 300, steps=4)
    harness.finish()
    assert harness.costs.encode_seconds(NATIVE) == pytest.approx(0.3, rel=0.05)
    assert harness.costs.overhead == pytest.approx(1.0, rel=0.05)


def test_the_warm_up_measures_a_prompt_that_was_not_encoded_before() -> None:
    model = TimedModel(encode_time=0.25)
    costs = measure(model, MemoryGuard(), max_rows=0, clock=model.clock, report=lambda line: None)
    assert costs.encode_seconds(NATIVE) == pytest.approx(0.25)
    assert costs.cap(NATIVE) >= 2


def test_a_pictures_time_tells_the_encoding_from_the_wait_and_the_steps() -> None:
    harness = Harness(TimedModel(encode_time=0.2))
    submit_prompts(harness, 6, steps=4)
    harness.finish()
    images = [
        out
        for outcomes in harness.outcomes.values()
        for out in outcomes
        if isinstance(out, GeneratedImage)
    ]
    assert statistics.fmean(image.timings.encoding for image in images) == pytest.approx(1.2)
