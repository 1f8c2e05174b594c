"""SD3 with T5 and without: the pictures of diffusers' own pipeline, alone, in a crowd, and joining mid-flight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from tests.doubles import make_request
from tests.integration.engine.conftest import (
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
    submitted_in_turn,
)
from tests.integration.engine.pipelines import SD3_KINDS, draw_with_pipeline
from text2image.core.messages import Request, Sampler, Schedule
from text2image.engine.models.contract import Model
from text2image.engine.models.loading import load_model
from text2image.engine.samplers.registry import scheduler_for

Folders = Callable[[str], Path]


def ask(prompt: str = "a red fox", **more: Any) -> Request:
    usual = {"width": 64, "height": 64, "sampler": Sampler.FLOW_EULER}
    return make_request(prompt, **{**usual, **more})


def loaded(folder: Path) -> Model:
    return load_model(settings_for(str(folder)), 0, lambda detail: None)


class Reference:
    """Diffusers' own pipeline, drawing one request after another."""

    def __init__(self, folder: Path) -> None:
        # Diffusers wants to be told of parts that are not there.
        t5 = ("text_encoder_3", "tokenizer_3")
        absent = {part: None for part in t5 if not (folder / part).is_dir()}
        self.pipeline: Any = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
        self.pipeline.set_progress_bar_config(disable=True)
        self._config = self.pipeline.scheduler.config

    def draw(self, request: Request, **more: Any) -> np.ndarray:
        self.pipeline.scheduler = scheduler_for(request.sampler, self._config, request.schedule)
        return draw_with_pipeline(self.pipeline, request, **more)


def off(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


def crowd(model: Model) -> list[Request]:
    """Requests that differ in all that rows may differ in, and in size."""
    scales, words = [7.0, 0.0, 3.5, 1.0, 12.0], ["", "a blue dog", "night"]
    requests = [
        ask(
            f"a {thing}",
            seed=seed,
            steps=2 + seed % 5,
            guidance_scale=scales[seed % 5],
            negative_prompt=words[seed % 3],
            sampler=model.info.samplers[seed % len(model.info.samplers)],
        )
        for seed, thing in enumerate(["fox", "cat", "dog", "car", "tree", "fish", "house", "boat"])
    ]
    wide = [ask(seed=seed, width=96, steps=3, guidance_scale=4.0 * seed) for seed in (0, 1)]
    return [*requests, ask(steps=4, schedule=Schedule.KARRAS), *wide]


@pytest.mark.parametrize("kind", SD3_KINDS)
def test_invariant_1_pictures_of_a_crowd_that_join_mid_flight_are_the_pipelines(
    pipeline_folder: Folders, kind: str
) -> None:
    model, reference = loaded(pipeline_folder(kind)), Reference(pipeline_folder(kind))
    requests = crowd(model)
    harness = harness_for(model, cap=12)
    timesteps: list[int] = []
    predict = model._networks.predict  # type: ignore[attr-defined]

    def noted(latents: torch.Tensor, at: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        timesteps.append(len(at.unique()))
        output: torch.Tensor = predict(latents, at, *args, **kwargs)
        return output

    model._networks.predict = noted  # type: ignore[attr-defined]
    generations = submitted_in_turn(harness, requests, every=3)
    harness.finish()
    assert max(timesteps) > 3, "rows at different timesteps share a pass"
    for request, generation in zip(requests, generations, strict=True):
        (image,) = harness.images(generation)
        assert off(array(image), reference.draw(request)) <= TOLERANCE, request
        assert off(array(image), draw_alone(model, request)) <= TOLERANCE, request


def test_a_picture_depends_on_its_prompt_in_all_three_encoders(pipeline_folder: Folders) -> None:
    """Or the comparisons with diffusers would prove little."""
    reference, request = Reference(pipeline_folder("sd3")), ask(steps=4, guidance_scale=15.0)
    plain = reference.draw(request)
    for more in ({"prompt_2": "a blue sea"}, {"prompt_3": "a blue sea"}):
        assert off(plain, reference.draw(request, **more)) > 5 * TOLERANCE


@pytest.mark.parametrize(("kind", "scale", "tokens"), [("sd3", 7.0, 256), ("sd3-bare", 3.5, 24)])
def test_defaults_suit_the_kind(
    pipeline_folder: Folders, kind: str, scale: float, tokens: int
) -> None:
    info = loaded(pipeline_folder(kind)).info
    assert (info.family, info.steps, info.guidance_scale) == ("stable-diffusion-3", 28, scale)
    assert info.sampler is Sampler.FLOW_EULER
    assert set(info.samplers) <= {Sampler.FLOW_EULER, Sampler.FLOW_HEUN}
    assert info.max_prompt_tokens == tokens
    assert info.side_multiple == 16
    assert info.max_side == 192, "as far as its positions go"


@pytest.mark.parametrize(("kind", "told"), [("sd3", False), ("sd3-bare", True)])
def test_a_prompt_is_truncated_where_its_longest_encoder_ends(
    pipeline_folder: Folders, kind: str, told: bool
) -> None:
    harness = harness_for(loaded(pipeline_folder(kind)))
    generation = harness.submit(ask("a fox " * 15 + "at the very end", steps=1))
    harness.finish()
    ending: Any = harness.ending(generation)
    assert ending.truncated.endswith("at the very end") == told


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", SD3_KINDS)
def test_in_half_precision_a_picture_stays_close(
    pipeline_folder: Folders, kind: str, dtype: str
) -> None:
    settings = settings_for(str(pipeline_folder(kind))).model_copy(update={"dtype": dtype})
    half, full = load_model(settings, 0, lambda detail: None), loaded(pipeline_folder(kind))
    # Of no guidance, which would enlarge what rounding does.
    request = ask(steps=3, guidance_scale=0.0)
    assert np.abs(draw_alone(half, request) - draw_alone(full, request)).mean() < 8
