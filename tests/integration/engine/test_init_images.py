"""What begins from a picture, or is drawn anew in a part of it, is what diffusers' own pipelines draw, in any crowd."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.doubles import make_request
from tests.init_images import HEIGHT, WIDTH, hole, init_image, picture
from tests.integration.engine.conftest import (
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
    submitted_in_turn,
)
from text2image.core.messages import Event, GeneratedImage, Input, ModelInfo, Request, Sampler
from text2image.engine.models.contract import Model
from text2image.engine.models.loading import load_model
from text2image.engine.samplers.registry import scheduler_for
from text2image.gateway import hires

# One that draws noise of its own, one that asks the network twice, a multistep one, one that calls once more.
SAMPLERS = (Sampler.EULER_ANCESTRAL, Sampler.HEUN, Sampler.UNIPC, Sampler.PNDM)
FLOWS = {"sd3": "StableDiffusion3", "sd3-bare": "StableDiffusion3", "flux-dev": "Flux"}
FAMILIES = {"sd1": "StableDiffusion", "xl": "StableDiffusionXL", **FLOWS}

Folder = Callable[[str], Path]


def samplers_of(kind: str) -> tuple[Sampler, ...]:
    """Those that are tried with a family; Flux's noise levels are taken by one alone."""
    if kind not in FLOWS:
        return SAMPLERS
    # With a shift by size there is no Heun.
    return (Sampler.FLOW_EULER, Sampler.FLOW_HEUN) if kind == "sd3" else (Sampler.FLOW_EULER,)


def asked(sampler: Sampler, strength: float, *, masked: bool, seed: int = 3) -> Request:
    return make_request(
        "a cat",
        width=WIDTH,
        height=HEIGHT,
        steps=5,
        seed=seed,
        sampler=sampler,
        image=init_image(masked=masked),
        strength=strength,
    )


def mixed(samplers: tuple[Sampler, ...] = SAMPLERS) -> list[Request]:
    """Text, pictures and masks, at several strengths."""
    requests = []
    for number, sampler in enumerate(samplers):
        text = make_request("a cat", width=WIDTH, height=HEIGHT, steps=4, seed=9, sampler=sampler)
        requests += [
            asked(sampler, 0.4 + 0.2 * (number % 2), masked=False),
            replace(text, guidance_scale=(1.0, 5.0)[number % 2]),
            asked(sampler, 0.7, masked=True),
            asked(sampler, 1.0, masked=True, seed=number),
        ]
    return requests


def loaded(folder: Path) -> Model:
    return load_model(settings_for(str(folder)), 0, lambda detail: None)


def drawn_by_diffusers(folder: Path, kind: str, request: Request) -> np.ndarray:
    """The picture of diffusers' pipeline for inpainting where there is a mask, or for text and picture."""
    assert request.image is not None
    masked = request.image.mask is not None
    title = "Inpaint" if masked else "Img2Img"
    # A pipeline that was saved without them must be told so.
    absent: dict[str, Any] = (
        {"text_encoder_3": None, "tokenizer_3": None} if folder.name == "sd3-bare" else {}
    )
    pipeline = getattr(diffusers, f"{kind}{title}Pipeline").from_pretrained(folder, **absent)
    if title == "Inpaint" and kind == "StableDiffusion3":
        _shift_when_decoding(pipeline.vae)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler_for(request.sampler, pipeline.scheduler.config, None)
    more: dict[str, Any] = {"mask_image": hole()} if masked else {}
    if masked or kind in FLOWS.values():
        more |= {"width": WIDTH, "height": HEIGHT}
    output = pipeline(
        request.prompt,
        image=picture(),
        strength=request.strength,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
        **more,
    )
    drawn: np.ndarray = (output.images[0] * 255).round().astype(np.int16)
    return drawn


def _shift_when_decoding(vae: Any) -> None:
    """Diffusers' pipeline for inpainting with SD3 leaves out what all its others for SD3 do before they decode."""
    decode, shift = vae.decode, vae.config.shift_factor
    vae.decode = lambda latents, **options: decode(latents + shift, **options)


@pytest.mark.parametrize(
    ("kind", "sampler"), [(kind, each) for kind in FAMILIES for each in samplers_of(kind)]
)
def test_a_picture_begins_from_another_as_diffusers_has_it(
    pipeline_folder: Folder, kind: str, sampler: Sampler
) -> None:
    folder = pipeline_folder(kind)
    model = loaded(folder)
    for masked, strength in ((False, 0.6), (True, 0.6), (True, 1.0)):
        request = asked(sampler, strength, masked=masked)
        theirs = drawn_by_diffusers(folder, FAMILIES[kind], request)
        assert np.abs(draw_alone(model, request) - theirs).max() <= TOLERANCE
        other = replace(request, strength=0.4)
        assert np.abs(draw_alone(model, other) - theirs).max() > TOLERANCE


@pytest.mark.parametrize(("kind", "family"), [("sd1", "sd1"), ("xl", "xl")])
def test_a_network_for_inpainting_draws_what_diffusers_has_it_draw(
    pipeline_folder: Folder, kind: str, family: str
) -> None:
    folder = pipeline_folder(f"{kind}-inpaint")
    model = loaded(folder)
    assert model.info.inputs == tuple(Input)
    requests = [asked(Sampler.EULER_ANCESTRAL, strength, masked=True) for strength in (0.6, 1.0)]
    harness = harness_for(model)
    generations = [harness.submit(request) for request in requests]
    harness.finish()
    for request, generation in zip(requests, generations, strict=True):
        theirs = drawn_by_diffusers(folder, FAMILIES[family], request)
        (image,) = harness.images(generation)
        assert np.abs(array(image) - theirs).max() <= TOLERANCE


def test_a_network_for_inpainting_draws_from_a_text_as_if_all_were_masked(
    pipeline_folder: Folder,
) -> None:
    model = loaded(pipeline_folder("sd1-inpaint"))
    text = replace(asked(Sampler.EULER, 1.0, masked=False), image=None, strength=None)
    # Black or white: where all is masked, nothing of the picture is seen.
    whole = init_image()
    everywhere = replace(whole, mask=b"\xff" * (WIDTH * HEIGHT), digest="all")
    masked = replace(text, image=everywhere, strength=1.0)
    assert np.abs(draw_alone(model, text) - draw_alone(model, masked)).max() == 0


@pytest.mark.parametrize("kind", FAMILIES)
def test_invariant_1_text_pictures_and_masks_share_a_batch_and_join_mid_flight(
    pipeline_folder: Folder, kind: str
) -> None:
    model = loaded(pipeline_folder(kind))
    requests = mixed(samplers_of(kind))
    harness = harness_for(model, cap=24)
    generations = submitted_in_turn(harness, requests, every=3)
    harness.finish()
    for request, generation in zip(requests, generations, strict=True):
        (image,) = harness.images(generation)
        assert np.abs(array(image) - draw_alone(model, request)).max() <= TOLERANCE


def test_what_is_not_masked_stays_as_it_was(embedded: Model) -> None:
    size = (embedded.info.width, embedded.info.height)
    start = init_image(size, masked=True)
    request = make_request("a cat", steps=3, seed=1, image=start, strength=1.0)
    drawn = draw_alone(embedded, request)
    before = array_of(picture(size))
    outside = np.array(hole(size)) == 0
    changed = np.abs(drawn - before).mean(-1)
    assert changed[outside].mean() < changed[~outside].mean() / 2


def test_all_pictures_of_a_request_begin_from_one_that_is_encoded_once(embedded: Model) -> None:
    encoded: list[int] = []
    networks: Any = embedded._networks  # type: ignore[attr-defined]
    encode = networks.encode
    networks.encode = lambda pictures: encoded.append(len(pictures)) or encode(pictures)
    size = (embedded.info.width, embedded.info.height)
    request = make_request(
        "a cat", steps=2, seed=70, n=3, image=init_image(size, seed=5), strength=0.5
    )
    try:
        harness = harness_for(embedded)
        generation = harness.submit(request)
        harness.finish()
    finally:
        networks.encode = encode
    assert sum(encoded) == 1
    images = harness.images(generation)
    assert len(images) == request.n
    for index, image in enumerate(images):
        alone = draw_alone(embedded, replace(request, n=1, seed=70 + index))
        assert np.abs(array(image) - alone).max() <= TOLERANCE


@pytest.mark.parametrize("strength", [0.29, 0.5, 0.01])
def test_a_flow_takes_the_step_whole_that_a_strength_reaches_into(
    pipeline_folder: Folder, strength: float
) -> None:
    folder = pipeline_folder("flux-dev")
    model = loaded(folder)
    request = asked(Sampler.FLOW_EULER, strength, masked=False)
    assert model.plan(request).passes == request.steps_drawn == math.ceil(5 * strength)
    theirs = drawn_by_diffusers(folder, "Flux", request)
    assert np.abs(draw_alone(model, request) - theirs).max() <= TOLERANCE


def test_only_the_steps_that_are_taken_are_planned_and_told(pipeline_folder: Folder) -> None:
    model = loaded(pipeline_folder("sd1"))
    for sampler, passes in ((Sampler.EULER, 3), (Sampler.HEUN, 5), (Sampler.PNDM, 4)):
        request = asked(sampler, 0.6, masked=False)
        assert (request.steps_drawn, model.plan(request).passes) == (3, passes)
        harness = harness_for(model)
        generation = harness.submit(request)
        harness.finish()
        assert harness.loop.counters["sample_steps"] == passes
        assert harness.images(generation)


async def test_an_enlarged_picture_is_that_of_two_pipelines_one_after_the_other(
    pipeline_folder: Folder,
) -> None:
    folder = pipeline_folder("sd1")
    model = loaded(folder)

    async def generate(request: Request) -> AsyncGenerator[tuple[Event, ModelInfo], None]:
        harness = harness_for(model)
        generation = harness.submit(request)
        harness.finish()
        for image in harness.images(generation):
            yield image, model.info

    request = make_request("a cat", width=WIDTH, height=HEIGHT, steps=4, sampler=Sampler.EULER)
    asked_ = replace(request, hires_scale=1.5, hires_strength=0.5, hires_steps=6)
    (image,) = [event async for event, _ in hires.drawn(asked_, generate)]
    assert isinstance(image, GeneratedImage)
    small = Image.fromarray(draw_alone(model, request).astype(np.uint8))
    large = small.resize(asked_.final_size, Image.Resampling.LANCZOS)
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler_for(Sampler.EULER, pipeline.scheduler.config, None)
    output = pipeline(
        "a cat",
        image=large,
        strength=0.5,
        num_inference_steps=6,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
    )
    theirs = (output.images[0] * 255).round().astype(np.int16)
    assert np.abs(array(image) - theirs).max() <= TOLERANCE


def array_of(image: Any) -> np.ndarray:
    return np.array(image).astype(np.int16)
