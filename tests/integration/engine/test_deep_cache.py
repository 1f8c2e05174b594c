"""Fast pictures that take deep features from earlier passes do so by their own steps, whatever is drawn beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.doubles import make_request
from tests.integration.engine.conftest import (
    DEVICE,
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
    submitted_in_turn,
)
from tests.integration.engine.test_fast import LimitedPipeline, draw_with
from text2image.core.messages import Quality, Request, Sampler
from text2image.engine.models.contract import Model
from text2image.engine.models.loading import EMBEDDED_PATH, load_model

FAST = make_request("a cat on a blue background", steps=7, seed=5, quality=Quality.FAST)
EXACT = replace(FAST, quality=Quality.EXACT)
RUNTIMES = ("torch", "openvino") if DEVICE == "cpu" else ("torch",)


def load(interval: str, every: int, model: str = "embedded", runtime: str = "torch") -> Model:
    update = {"guidance_interval": interval, "deep_cache": every}
    settings = settings_for(model, runtime).model_copy(update=update)
    return load_model(settings, 0, lambda detail: None)


@pytest.fixture(scope="module", params=RUNTIMES)
def deep(request: pytest.FixtureRequest) -> Model:
    """Guided everywhere, and every third pass is whole."""
    return load("0-1", 3, runtime=request.param)


@pytest.fixture(scope="module", params=RUNTIMES)
def both(request: pytest.FixtureRequest) -> Model:
    """Rows come and go besides, out of step with the whole passes."""
    return load("0.2-0.6", 3, runtime=request.param)


def greatest(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


def draw_with_kept_features(request: Request, guided: range, whole: set[int]) -> np.ndarray:
    """Diffusers' own U-Net computes everything, and what its last layers are given is put in the place of it."""
    pipeline = LimitedPipeline.from_pretrained(EMBEDDED_PATH, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    kept: list[torch.Tensor] = []

    def take(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        features, skipped = inputs[0][:, :-64], inputs[0][:, -64:]
        kept.append(features if len(kept) in whole else kept[-1])
        return (torch.cat([kept[-1], skipped], 1), *inputs[1:])

    pipeline.unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(take)
    return draw_with(pipeline, request, guided)


@pytest.mark.parametrize("sampler", [Sampler.DPMPP_2M, Sampler.EULER_ANCESTRAL])
def test_a_fast_picture_is_the_pipelines_with_deep_features_of_earlier_passes(
    deep: Model, sampler: Sampler
) -> None:
    request = replace(FAST, sampler=sampler)
    theirs = draw_with_kept_features(request, range(7), {0, 3, 6})
    assert greatest(draw_alone(deep, request), theirs) <= TOLERANCE


def test_a_picture_that_loses_its_guidance_takes_the_features_of_the_row_that_it_keeps(
    both: Model,
) -> None:
    theirs = draw_with_kept_features(FAST, range(1, 4), {0, 1, 3, 6})
    assert greatest(draw_alone(both, FAST), theirs) <= TOLERANCE


def test_invariant_1_pictures_with_and_without_in_a_crowd_are_those_drawn_alone(
    both: Model,
) -> None:
    requests = [
        replace(request, prompt=f"a {thing}", seed=seed, steps=steps, width=width)
        for seed, (thing, steps, width) in enumerate([("cat", 5, 128), ("dog", 8, 64)])
        for request in (FAST, EXACT, replace(FAST, sampler=Sampler.HEUN))
    ] + [replace(FAST, steps=6, guidance_scale=1.0)]
    harness = harness_for(both, cap=12)
    generations = submitted_in_turn(harness, requests, every=2)
    harness.finish()
    for request, generation in zip(requests, generations, strict=True):
        (image,) = harness.images(generation)
        assert greatest(array(image), draw_alone(both, request)) <= TOLERANCE


def test_an_exact_picture_is_the_same_with_a_deep_cache_and_without(
    deep: Model, embedded: Model
) -> None:
    assert greatest(draw_alone(deep, EXACT), draw_alone(embedded, EXACT)) <= TOLERANCE
    assert greatest(draw_alone(deep, FAST), draw_alone(deep, EXACT)) > 5 * TOLERANCE


def test_features_are_a_samples_own_and_kept_no_longer_than_a_pass_takes_them(deep: Model) -> None:
    harness = harness_for(deep)
    one, other = (harness.submit(replace(FAST, seed=seed)).samples[0] for seed in (1, 2))
    exact = harness.submit(EXACT).samples[0]
    kept = []
    while not harness.loop.idle:
        harness.loop.tick()
        if not one.done:
            kept.append(one.state.features is not None)
            assert exact.state.features is None
            for features in (each.state.features for each in (one, other) if kept[-1]):
                assert features.untyped_storage().nbytes() == features.nbytes
                assert len(features) == 2
    # Whole are the first, the fourth and the last pass.
    assert kept == [True, True, False, True, True, False]


def test_what_a_picture_takes_is_what_was_planned(both: Model) -> None:
    harness = harness_for(both)
    harness.submit(FAST)
    plan = both.plan(FAST)
    taken, predict = [], both.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(both, "predict", lambda s: taken.append(s[0].work) or predict(s))
        harness.finish()
    assert plan.rows * plan.load * plan.passes == pytest.approx(sum(taken))
    outer = both._outer_load  # type: ignore[attr-defined]
    assert 0 < outer < 0.5
    # Guided are the second to the fourth, of which the first has no unconditional row to take from.
    assert taken == [1, 2, 2 * outer, 2, outer, outer, 1]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (
            "sd1",
            "guidance outside of 0-0.3 of the passes, deep features in all but one of 2 passes",
        ),
        # It takes the scale as an input, and has no second row to leave out.
        ("lcm", "deep features in all but one of 2 passes"),
    ],
)
def test_a_model_says_that_its_fast_pictures_take_deep_features_from_before(
    pipeline_folder: Callable[[str], Path], kind: str, told: str
) -> None:
    model = load("0-0.3", 2, str(pipeline_folder(kind)))
    assert model.info.fast == told
    sampler = model.info.sampler
    fast = draw_alone(model, replace(FAST, steps=4, sampler=sampler))
    assert greatest(fast, draw_alone(model, replace(EXACT, steps=4, sampler=sampler))) > 0


def test_another_family_leaves_the_setting_alone(pipeline_folder: Callable[[str], Path]) -> None:
    model, plain = (load("0-0.3", every, str(pipeline_folder("xl"))) for every in (2, 1))
    assert model.info.fast == plain.info.fast == "guidance outside of 0-0.3 of the passes"
    fast = replace(FAST, steps=3, sampler=model.info.sampler)
    assert model.plan(fast) == plain.plan(fast)
    assert greatest(draw_alone(model, fast), draw_alone(plain, fast)) == 0
