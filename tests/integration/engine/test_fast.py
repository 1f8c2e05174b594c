"""Fast pictures are guided in a part of their passes alone, whatever is drawn beside them; exact ones are as ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.doubles import make_request
from tests.integration.engine.conftest import (
    CONFIG,
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
    submitted_in_turn,
)
from text2image.core.guidance import EVERYWHERE, Interval
from text2image.core.messages import Quality, Request, Sampler
from text2image.engine.models.contract import Model
from text2image.engine.models.loading import EMBEDDED_PATH, load_model
from text2image.engine.samplers.registry import scheduler_for

MIDDLE = Interval(0.2, 0.6)
FAST = make_request("a cat on a blue background", steps=10, seed=5, quality=Quality.FAST)
EXACT = replace(FAST, quality=Quality.EXACT)


@pytest.fixture
def fast(embedded: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model whose fast pictures are guided in the middle, so that rows come and go."""
    monkeypatch.setattr(embedded, "_interval", MIDDLE)
    return embedded


def greatest(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


class LimitedPipeline(StableDiffusionPipeline):
    """Diffusers' own, with the scale of its callback's recipe for dynamic guidance: 1 outside of the interval.

    It computes both rows at every step all the same.
    """

    guided: Sequence[int] = ()
    step = 0

    @property
    def do_classifier_free_guidance(self) -> bool:
        return True

    @property
    def guidance_scale(self) -> float:
        scale: float = self._guidance_scale
        return scale if self.step in self.guided else 1.0


@pytest.fixture(scope="module")
def reference() -> LimitedPipeline:
    pipeline = LimitedPipeline.from_pretrained(EMBEDDED_PATH, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_with(pipeline: LimitedPipeline, request: Request, guided: range) -> np.ndarray:
    pipeline.scheduler = scheduler_for(request.sampler, CONFIG, None)
    pipeline.guided, pipeline.step = guided, 0

    def stepped(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe.step = step + 1
        return {}

    output = pipeline(
        request.prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
        callback_on_step_end=stepped,
    )
    picture: np.ndarray = (output.images[0] * 255).round().astype(np.int16)
    return picture


@pytest.mark.parametrize("sampler", [Sampler.DPMPP_2M, Sampler.EULER_ANCESTRAL, Sampler.DDIM])
def test_a_fast_picture_is_the_pipelines_with_guidance_in_the_interval_alone(
    fast: Model, reference: LimitedPipeline, sampler: Sampler
) -> None:
    request = replace(FAST, sampler=sampler)
    theirs = draw_with(reference, request, range(2, 6))
    assert greatest(draw_alone(fast, request), theirs) <= TOLERANCE


def test_a_fast_picture_is_another_than_the_exact_one(fast: Model) -> None:
    assert greatest(draw_alone(fast, FAST), draw_alone(fast, EXACT)) > 10 * TOLERANCE


def test_invariant_1_fast_and_exact_pictures_in_a_crowd_are_those_drawn_alone(fast: Model) -> None:
    requests = [
        replace(request, prompt=f"a {thing}", seed=seed, steps=steps, sampler=sampler)
        for seed, (thing, steps) in enumerate([("cat", 5), ("dog", 8), ("car", 3)])
        for request in (FAST, EXACT)
        for sampler in (Sampler.DPMPP_2M, Sampler.HEUN)
    ] + [replace(FAST, steps=6, guidance_scale=1.0)]
    harness = harness_for(fast, cap=12)
    generations = submitted_in_turn(harness, requests, every=3)
    harness.finish()
    for request, generation in zip(requests, generations, strict=True):
        (image,) = harness.images(generation)
        assert greatest(array(image), draw_alone(fast, request)) <= TOLERANCE


def test_an_exact_picture_is_the_same_whatever_fast_ones_leave_out(
    embedded: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = draw_alone(embedded, EXACT)
    monkeypatch.setattr(embedded, "_interval", MIDDLE)
    assert greatest(before, draw_alone(embedded, EXACT)) == 0


def test_guided_everywhere_a_fast_picture_is_the_exact_one(
    embedded: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_interval", EVERYWHERE)
    assert embedded.plan(FAST) == embedded.plan(EXACT)
    assert greatest(draw_alone(embedded, FAST), draw_alone(embedded, EXACT)) == 0


@pytest.mark.parametrize(
    ("request_", "rows"),
    [
        (FAST, [1, 1, 2, 2, 2, 2, 1, 1, 1, 1]),
        (EXACT, [2] * 10),
        (replace(FAST, guidance_scale=1.0), [1] * 10),
        (replace(FAST, steps=5, sampler=Sampler.HEUN), [1, 1, 2, 2, 2, 1, 1, 1, 1]),
    ],
)
def test_rows_are_those_of_each_pass_and_the_plan_tells_their_mean_and_their_most(
    fast: Model, request_: Request, rows: list[int]
) -> None:
    harness = harness_for(fast)
    generation = harness.submit(request_)
    plan, (sample,) = fast.plan(request_), generation.samples
    assert plan.rows == max(rows)
    assert plan.passes == len(rows)
    assert plan.rows * plan.load * plan.passes == pytest.approx(sum(rows))
    taken = []
    predict = fast.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast, "predict", lambda s: taken.append(s[0].work) or predict(s))
        harness.finish()
    assert taken == rows
    assert sample.done


@pytest.mark.parametrize(("interval", "told"), [("0-1", ""), ("0.10-0.4", "0.1-0.4")])
def test_a_model_says_what_its_fast_pictures_leave_out(interval: str, told: str) -> None:
    settings = settings_for("embedded").model_copy(update={"guidance_interval": interval})
    fast = load_model(settings, 0, lambda detail: None).info.fast
    assert fast == (f"guidance outside of {told} of the passes" if told else "")


def test_a_network_without_a_second_row_has_nothing_to_leave_out(
    pipeline_folder: Callable[[str], Path],
) -> None:
    model = load_model(settings_for(str(pipeline_folder("lcm"))), 0, lambda detail: None)
    assert model.info.fast == ""
    assert model.plan(FAST) == model.plan(EXACT)
