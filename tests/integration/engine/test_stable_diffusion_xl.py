"""SDXL in all its kinds: the pictures of diffusers' own pipeline, alone, in a crowd, and joining mid-flight."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from tests.doubles import make_request
from tests.integration.engine.conftest import (
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
    submitted_in_turn,
)
from tests.integration.engine.pipelines import draw_with_pipeline
from text2image.core.messages import Request, Sampler, Schedule
from text2image.engine.models.contract import Model
from text2image.engine.models.loading import load_model
from text2image.engine.samplers.registry import scheduler_for

Folders = Callable[[str], Path]
SMALL = {"width": 64, "height": 64}


def ask(prompt: str = "a red fox", **more: Any) -> Request:
    return make_request(prompt, **{**SMALL, **more})


@cache
def loaded(folder: Path, **settings: Any) -> Model:
    """The model in a folder, one for all tests that load it so."""
    chosen = settings_for(str(folder)).model_copy(update=settings)
    return load_model(chosen, 0, lambda detail: None)


class Reference:
    """Diffusers' own pipeline, drawing one request after another."""

    def __init__(self, folder: Path) -> None:
        self.pipeline: Any = StableDiffusionXLPipeline.from_pretrained(folder)
        self.pipeline.set_progress_bar_config(disable=True)
        self._config = self.pipeline.scheduler.config

    def draw(self, request: Request, **more: Any) -> np.ndarray:
        self.pipeline.scheduler = scheduler_for(request.sampler, self._config, request.schedule)
        return draw_with_pipeline(self.pipeline, request, **more)


def off(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


# Of each kind the request that it was made for, and others that its users send.
ASKED = {
    "xl": [
        ask(steps=6, sampler=Sampler.EULER, negative_prompt="a blue dog"),
        ask(steps=4, sampler=Sampler.DPMPP_2M, schedule=Schedule.KARRAS, width=96),
    ],
    "xl-turbo": [
        ask(steps=1, guidance_scale=0.0, sampler=Sampler.EULER_ANCESTRAL),
        ask(steps=3, guidance_scale=0.0, sampler=Sampler.EULER_ANCESTRAL),
    ],
    "xl-lightning": [ask(steps=4, guidance_scale=0.0, sampler=Sampler.EULER)],
    "xl-hyper": [ask(steps=4, guidance_scale=0.0, sampler=Sampler.TCD)],
    "xl-lcm": [ask(steps=4, guidance_scale=8.0, sampler=Sampler.LCM)],
    "xl-v": [ask(steps=5, guidance_scale=6.0, sampler=Sampler.EULER)],
    "xl-zero-snr": [
        ask(steps=6, guidance_scale=7.0, sampler=Sampler.EULER),
        ask(steps=6, guidance_scale=1.0, sampler=Sampler.DDIM),
    ],
    "xl-second": [
        ask(steps=4, sampler=Sampler.DDIM),
        ask(steps=4, sampler=Sampler.DDIM, negative_prompt="a blue dog"),
    ],
}
# What diffusers is called with beside, where a profile names something.
MORE = {"xl-zero-snr": {"guidance_rescale": 0.7}}


@pytest.mark.parametrize("kind", ASKED)
def test_every_kind_gives_its_pipelines_picture(pipeline_folder: Folders, kind: str) -> None:
    model, reference = loaded(pipeline_folder(kind)), Reference(pipeline_folder(kind))
    for seed, request in enumerate(ASKED[kind]):
        seeded = replace(request, seed=seed)
        theirs = reference.draw(seeded, **MORE.get(kind, {}))
        assert off(draw_alone(model, seeded), theirs) <= TOLERANCE


def crowd(samplers: Sequence[Sampler]) -> list[Request]:
    """Requests that differ in all that rows may differ in, and in size."""
    scales, negatives = cycle([5.0, 0.0, 9.0, 1.0, 2.5]), cycle(["", "a blue dog", "night"])
    requests = [
        ask(f"a fox {seed}", seed=seed, steps=2 + seed % 4, guidance_scale=scale, sampler=sampler)
        for seed, (sampler, scale) in enumerate(zip(samplers, scales, strict=False))
    ]
    named = [
        replace(each, negative_prompt=words)
        for each, words in zip(requests, negatives, strict=False)
    ]
    return [*named, ask(steps=3, width=96), ask(steps=4, width=96, guidance_scale=0.0)]


@pytest.mark.parametrize("kind", ["xl", "xl-zero-snr"])
def test_invariant_1_pictures_of_a_crowd_that_join_mid_flight_are_the_pipelines(
    pipeline_folder: Folders, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = loaded(pipeline_folder(kind)), Reference(pipeline_folder(kind))
    left_out = {Sampler.DPM2_ANCESTRAL} if kind == "xl-zero-snr" else set()
    requests = crowd([each for each in model.info.samplers if each not in left_out])
    harness = harness_for(model, cap=12)
    timesteps: list[int] = []
    predict = model._networks.predict  # type: ignore[attr-defined]

    def noted(latents: torch.Tensor, at: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        timesteps.append(len(at.unique()))
        output: torch.Tensor = predict(latents, at, *args, **kwargs)
        return output

    monkeypatch.setattr(model._networks, "predict", noted)  # type: ignore[attr-defined]
    generations = submitted_in_turn(harness, requests, every=3)
    harness.finish()
    assert max(timesteps) > 4, "rows at different timesteps share a pass"
    for request, generation in zip(requests, generations, strict=True):
        (image,) = harness.images(generation)
        theirs = reference.draw(request, **MORE.get(kind, {}))
        assert off(array(image), theirs) <= TOLERANCE, request


def test_an_empty_negative_prompt_is_no_negative_prompt(pipeline_folder: Folders) -> None:
    """Zeros for a model that is configured so, and the encoded empty text for any other."""
    request = ask(steps=4, sampler=Sampler.DDIM, guidance_scale=8.0)
    ours = draw_alone(loaded(pipeline_folder("xl")), request)
    reference = Reference(pipeline_folder("xl"))
    reference.pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert off(ours, reference.draw(request)) > 10 * TOLERANCE


def test_a_picture_depends_on_its_prompt_in_both_encoders_and_on_what_it_is_told_of_its_size(
    pipeline_folder: Folders,
) -> None:
    """Or the comparisons with diffusers would prove little."""
    request = ask(steps=4, sampler=Sampler.EULER)
    reference = Reference(pipeline_folder("xl"))
    plain = reference.draw(request)
    for more in ({"prompt_2": "a blue sea"}, {"original_size": (512, 512)}):
        assert off(plain, reference.draw(request, **more)) > 5 * TOLERANCE


@pytest.mark.parametrize(
    ("kind", "steps", "scale", "sampler"),
    [
        ("xl", 30, 5.0, Sampler.EULER),
        ("xl-turbo", 1, 0.0, Sampler.EULER_ANCESTRAL),
        ("xl-lightning", 4, 0.0, Sampler.EULER),
        ("xl-hyper", 4, 0.0, Sampler.TCD),
        ("xl-lcm", 4, 8.0, Sampler.LCM),
        ("xl-zero-snr", 30, 5.0, Sampler.EULER),
    ],
)
def test_defaults_suit_the_kind_whatever_its_folder_is_called(
    pipeline_folder: Folders, tmp_path: Path, kind: str, steps: int, scale: float, sampler: Sampler
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(pipeline_folder(kind), folder)
    info = loaded(folder).info
    assert (info.steps, info.guidance_scale, info.sampler) == (steps, scale, sampler)
    assert (info.family, info.width, info.height) == ("stable-diffusion-xl", 128, 128)
    assert info.max_prompt_tokens == 90


def test_the_rescale_of_guidance_can_be_set_and_is_part_of_the_revision(
    pipeline_folder: Folders,
) -> None:
    folder = pipeline_folder("xl-zero-snr")
    models = {rescale: loaded(folder, guidance_rescale=rescale) for rescale in (None, 0.0, 0.7)}
    request = ask(steps=5, guidance_scale=7.0, sampler=Sampler.EULER)
    assert off(draw_alone(models[0.0], request), Reference(folder).draw(request)) <= TOLERANCE
    assert models[None].info == models[0.7].info
    assert models[0.0].info.revision != models[0.7].info.revision


def test_what_one_encoder_has_no_room_for_is_told(pipeline_folder: Folders) -> None:
    harness = harness_for(loaded(pipeline_folder("xl")))
    generation = harness.submit(ask("a fox " * 44 + "at the very end", steps=1))
    harness.finish()
    ending: Any = harness.ending(generation)
    assert ending.truncated.endswith("at the very end")


def test_a_folder_that_has_the_weights_as_a_variant_alone_gives_the_same_picture(
    pipeline_folder: Folders, tmp_path: Path
) -> None:
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(pipeline_folder("xl"))
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert not list(tmp_path.glob("*/diffusion_pytorch_model.safetensors"))
    request = ask(steps=3, sampler=Sampler.EULER)
    assert (
        off(draw_alone(loaded(tmp_path), request), Reference(pipeline_folder("xl")).draw(request))
        <= TOLERANCE
    )


def overflowing(folder: Path, target: Path) -> Path:
    """A pipeline whose decoder's numbers are too large for fp16, as those of SDXL's first decoder are."""
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.vae.decoder.conv_in.weight.data.mul_(20_000)
    pipeline.save_pretrained(target)
    return target


def test_a_decoder_that_would_overflow_in_fp16_computes_in_fp32(
    pipeline_folder: Folders, tmp_path: Path
) -> None:
    folder = overflowing(pipeline_folder("xl"), tmp_path / "large")
    half, full = loaded(folder, dtype="float16"), loaded(folder)
    assert half.info.dtype == "float16"
    request = ask(steps=3, sampler=Sampler.EULER)
    assert np.abs(draw_alone(half, request) - draw_alone(full, request)).mean() < 8


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_in_bf16_nothing_is_upcast_as_in_diffusers(pipeline_folder: Folders, part: str) -> None:
    model: Any = loaded(pipeline_folder("xl"), dtype="bfloat16")
    assert getattr(model._networks, f"_{part}").dtype == torch.bfloat16
    request = ask(steps=3, sampler=Sampler.EULER, guidance_scale=1.0)
    full = draw_alone(loaded(pipeline_folder("xl")), request)
    assert np.abs(draw_alone(model, request) - full).mean() < 8


def test_a_network_that_is_told_other_things_is_refused_by_what_it_takes(
    pipeline_folder: Folders, tmp_path: Path
) -> None:
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(pipeline_folder("xl"))
    config = {**pipeline.unet.config, "projection_class_embeddings_input_dim": 72}
    pipeline.unet = UNet2DConditionModel.from_config(config)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"takes 72 numbers of text and size; .* make 80"):
        loaded(tmp_path)


def test_a_model_that_is_preconditioned_as_edm_is_refused_and_not_drawn_wrong(
    pipeline_folder: Folders, tmp_path: Path
) -> None:
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(pipeline_folder("xl"))
    pipeline.scheduler = EDMEulerScheduler()
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="scheduler that no sampler here can stand in for"):
        loaded(tmp_path)
