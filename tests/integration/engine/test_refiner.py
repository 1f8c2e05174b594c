"""SDXL with a refiner: the pictures of diffusers' two pipelines, one after the other, alone and in a crowd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from tests.doubles import make_request
from tests.init_images import HEIGHT, WIDTH, init_image
from tests.integration.engine.conftest import (
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
    submitted_in_turn,
)
from tests.integration.engine.pipelines import save_refiner
from text2image.core.messages import Request, Sampler, Schedule
from text2image.core.settings import Settings
from text2image.engine.models.contract import Model
from text2image.engine.models.inspection import inspect_model
from text2image.engine.models.loading import load_model
from text2image.engine.samplers.registry import scheduler_for

SWITCH = 0.6
Folders = Callable[[str], Path]


def ask(prompt: str = "a red fox", **more: Any) -> Request:
    usual = {"width": 64, "height": 64, "sampler": Sampler.EULER}
    return make_request(prompt, **{**usual, **more})


CROWD = [
    ask(seed=1, steps=6, negative_prompt="a dog"),
    ask("a cat", seed=2, steps=5, sampler=Sampler.EULER_ANCESTRAL),
    ask("a car", seed=3, steps=8, sampler=Sampler.DPMPP_2M, schedule=Schedule.KARRAS),
    ask("a tree", seed=4, steps=5, sampler=Sampler.HEUN, guidance_scale=3.0),
    ask("a boat", seed=5, steps=6, sampler=Sampler.UNIPC, guidance_scale=0.0),
    ask("a fish", seed=6, steps=4, sampler=Sampler.DDIM, width=96),
    # All of it falls to one of the two.
    ask("an owl", seed=7, steps=1),
]


@pytest.fixture(scope="module")
def base(pipeline_folder: Folders) -> Path:
    return pipeline_folder("xl")


@pytest.fixture(scope="module")
def refiner(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_refiner(base, tmp_path_factory.mktemp("refiner"))


def settings(base: Path, runtime: str = "torch", **more: Any) -> Settings:
    changes = {"refiner_switch": SWITCH, **more}
    return settings_for(str(base), runtime).model_copy(update=changes)


def loaded(base: Path, runtime: str = "torch", **more: Any) -> Model:
    return load_model(settings(base, runtime, **more), 0, lambda detail: None)


class Both:
    """Diffusers' own pipelines, drawing one request after another."""

    def __init__(self, base: Path, refiner: Path) -> None:
        self._pipelines: list[Any] = [
            StableDiffusionXLPipeline.from_pretrained(base),
            StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner),
        ]
        self._configs = [each.scheduler.config for each in self._pipelines]

    def draw(self, request: Request, switch: float = SWITCH) -> np.ndarray:
        for pipeline, config in zip(self._pipelines, self._configs, strict=True):
            pipeline.set_progress_bar_config(disable=True)
            pipeline.scheduler = scheduler_for(request.sampler, config, request.schedule)
        given: dict[str, Any] = {
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "generator": torch.Generator("cpu").manual_seed(request.seed),
        }
        if request.negative_prompt:
            given["negative_prompt"] = request.negative_prompt
        first, second = self._pipelines
        sides = {"width": request.width, "height": request.height}
        latents = first(
            request.prompt, **given, **sides, denoising_end=switch, output_type="latent"
        ).images
        output = second(
            request.prompt, **given, image=latents, denoising_start=switch, output_type="np"
        )
        picture: np.ndarray = (output.images[0] * 255).round().astype(np.int16)
        return picture


def off(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


def test_invariant_1_pictures_of_a_crowd_that_join_mid_flight_are_the_two_pipelines(
    base: Path, refiner: Path
) -> None:
    model, reference = loaded(base, refiner=str(refiner)), Both(base, refiner)
    harness = harness_for(model, cap=6)
    generations = submitted_in_turn(harness, CROWD, every=2)
    harness.finish()
    plain = loaded(base)
    for request, generation in zip(CROWD, generations, strict=True):
        (image,) = harness.images(generation)
        assert off(array(image), reference.draw(request)) <= TOLERANCE, request
    assert off(draw_alone(plain, CROWD[0]), reference.draw(CROWD[0])) > 5 * TOLERANCE
    assert off(reference.draw(CROWD[0], 0.8), reference.draw(CROWD[0])) > 5 * TOLERANCE
    told = replace(CROWD[0], guidance_scale=1.0)
    assert off(draw_alone(model, told), reference.draw(told)) <= TOLERANCE


@pytest.mark.slow
def test_openvino_draws_what_torch_draws(
    base: Path, refiner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2I_CACHE_DIR", str(tmp_path))
    one, other = (loaded(base, runtime, refiner=str(refiner)) for runtime in ("openvino", "torch"))
    assert off(draw_alone(one, CROWD[0]), draw_alone(other, CROWD[0])) <= TOLERANCE


def test_it_is_known_before_it_is_loaded_and_counts(base: Path, refiner: Path) -> None:
    both = settings(base, refiner=str(refiner))
    info, size = inspect_model(both, 0)
    plain, alone = inspect_model(settings(base), 0)
    assert info == loaded(base, refiner=str(refiner)).info
    assert info.revision != plain.revision
    later = inspect_model(both.model_copy(update={"refiner_switch": 0.8}), 0)[0]
    assert later.revision != info.revision
    weights = sum(file.stat().st_size for file in refiner.glob("*/*.safetensors"))
    assert size - alone == pytest.approx(weights, rel=0.05)


def test_what_is_no_refiner_and_what_takes_none_are_told(
    base: Path, refiner: Path, pipeline_folder: Folders
) -> None:
    with pytest.raises(ValueError, match=r"as SDXL's refiner is, .* \(T2I_REFINER\)"):
        loaded(refiner)
    with pytest.raises(ValueError, match=r"^T2I_REFINER=.*: it is a StableDiffusionXLPipeline"):
        loaded(base, refiner=str(base))
    with pytest.raises(ValueError, match="T2I_REFINER goes with SDXL"):
        loaded(pipeline_folder("sd1"), refiner=str(refiner))
    with pytest.raises(ValueError, match=r"^T2I_REFINER=/nowhere: there is no model_index.json"):
        loaded(base, refiner="/nowhere")


def test_a_picture_that_begins_with_one_is_the_bases_alone_beside_others(
    base: Path, refiner: Path
) -> None:
    sides = {"width": WIDTH, "height": HEIGHT}
    begun = ask(seed=8, steps=6, image=init_image(masked=True), strength=0.7, **sides)
    model = loaded(base, refiner=str(refiner))
    harness = harness_for(model)
    generations = [harness.submit(each) for each in (begun, CROWD[0])]
    harness.finish()
    picture, other = (array(*harness.images(each)) for each in generations)
    assert off(picture, draw_alone(loaded(base), begun)) <= TOLERANCE
    assert off(other, draw_alone(model, CROWD[0])) <= TOLERANCE
