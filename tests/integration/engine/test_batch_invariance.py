"""Invariants 1 to 3 on the real model: a picture depends on its request alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.doubles import make_request
from tests.integration.engine.conftest import (
    DEVICE,
    OFFERED,
    TOLERANCE,
    Alone,
    array,
    harness_for,
    submitted_in_turn,
)
from text2image.core.messages import Request
from text2image.core.settings import Settings
from text2image.engine.models.contract import Model
from text2image.engine.models.loading import load_model


def difference(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


PLAIN = [
    make_request(f"a {thing}", steps=6, seed=i) for i, thing in enumerate(["cat", "dog", "car"])
]
MIXED = {
    "full batch": PLAIN * 4,
    "mixed steps": [make_request("a cat", steps=steps, seed=steps) for steps in (1, 3, 8, 5)],
    "mixed guidance": [
        make_request("a red apple", steps=5, seed=i, guidance_scale=scale)
        for i, scale in enumerate([0.0, 1.0, 2.5, 7.5, 30.0])
    ],
    # What a sampler does is no matter of the size.
    "mixed samplers": [
        make_request("a fish", steps=5, seed=3, sampler=each, width=64, height=64)
        for each in OFFERED
    ],
    "mixed sizes": [
        make_request("a tree", steps=4, seed=i, width=width, height=height)
        for i, (width, height) in enumerate(
            [(128, 128), (64, 64), (192, 128), (128, 192), (128, 128)]
        )
    ],
    "negative prompts": [
        make_request("a house", steps=5, seed=1, negative_prompt=words)
        for words in ("", "red", "blue")
    ],
}


@pytest.mark.parametrize("case", MIXED)
def test_invariant_1_a_picture_in_a_batch_is_the_picture_drawn_alone(
    embedded: Model, alone: Alone, case: str
) -> None:
    harness = harness_for(embedded)
    generations = [harness.submit(request) for request in MIXED[case]]
    harness.finish()
    for request, generation in zip(MIXED[case], generations, strict=True):
        (image,) = harness.images(generation)
        assert difference(array(image), alone(request)) <= TOLERANCE


def test_invariant_1_a_picture_that_joins_mid_flight_is_the_picture_drawn_alone(
    embedded: Model, alone: Alone
) -> None:
    everything = [request for requests in MIXED.values() for request in requests[:4]]
    harness = harness_for(embedded, cap=12)
    generations = submitted_in_turn(harness, everything, every=3)
    harness.finish()
    for request, generation in zip(everything, generations, strict=True):
        (image,) = harness.images(generation)
        assert difference(array(image), alone(request)) <= TOLERANCE


def test_invariant_1_cancelled_neighbours_leave_no_mark(embedded: Model, alone: Alone) -> None:
    harness = harness_for(embedded)
    kept = harness.submit(PLAIN[0])
    gone = [harness.submit(request) for request in PLAIN[1:]]
    harness.loop.tick()
    for generation in gone:
        harness.loop.cancel(generation)
    harness.finish()
    assert difference(array(harness.images(kept)[0]), alone(PLAIN[0])) <= TOLERANCE


def test_invariant_1_picture_i_of_n_is_the_picture_of_seed_plus_i(
    embedded: Model, alone: Alone
) -> None:
    harness = harness_for(embedded)
    generation = harness.submit(make_request("a cat", steps=4, seed=70, n=3))
    harness.finish()
    for index, image in enumerate(harness.images(generation)):
        own = alone(make_request("a cat", steps=4, seed=70 + index))
        assert difference(array(image), own) <= TOLERANCE


def test_another_seed_and_another_prompt_give_another_picture(alone: Alone) -> None:
    first = alone(make_request("a cat", steps=8, seed=1))
    for other in (make_request("a cat", steps=8, seed=2), make_request("a car", steps=8, seed=1)):
        assert difference(first, alone(other)) > 10 * TOLERANCE


def test_invariant_3_no_two_samples_share_a_trajectory_a_generator_or_latents(
    embedded: Model,
) -> None:
    harness = harness_for(embedded)
    request = make_request("a cat", steps=3, n=2)
    samples = [sample for _ in range(2) for sample in harness.submit(request).samples]
    harness.loop.tick()
    trajectories = [sample.state.trajectory for sample in samples]
    for parts in (
        [id(each) for each in trajectories],
        [id(each._generator) for each in trajectories],
        [each.latents.data_ptr() for each in trajectories],
    ):
        assert len(set(parts)) == len(samples)


def test_in_half_precision_latents_stay_in_full_and_the_picture_stays_close(
    alone: Alone, runtime: str
) -> None:
    settings = Settings(model="embedded", device=DEVICE, dtype="bfloat16", runtime=runtime)
    half = load_model(settings, 0, lambda detail: None)
    request = make_request("a cat on a blue background", steps=6, seed=1)
    harness = harness_for(half)
    generation = harness.submit(request)
    harness.loop.tick()
    assert generation.samples[0].state.trajectory.latents.dtype == torch.float32
    harness.finish()
    picture = array(harness.images(generation)[0])
    assert np.abs(picture - alone(request)).mean() < 8


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_invariant_3_a_scale_of_one_and_below_draws_without_guidance(
    embedded: Model, alone: Alone, scale: float
) -> None:
    request = make_request("a cat", steps=2, guidance_scale=scale, negative_prompt="blue")
    assert embedded.plan(request).rows == 1
    without: Request = make_request("a cat", steps=2, guidance_scale=scale)
    assert difference(alone(request), alone(without)) == 0
