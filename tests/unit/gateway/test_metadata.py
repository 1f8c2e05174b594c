"""A picture's parameters suffice to draw it again, whatever its prompt."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tests.init_images import init_image
from tests.samples import MODEL, REQUEST, params_of, requests
from text2image.core.errors import InvalidRequest
from text2image.core.messages import (
    Control,
    ControlInfo,
    Input,
    LoraWeight,
    Pixels,
    Quality,
    Request,
    RequestParams,
    Sampler,
    Schedule,
    UpscalerInfo,
)
from text2image.core.validation import resolve
from text2image.gateway import metadata


@given(requests, st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
@example(replace(REQUEST, prompt="a fox\nNegative prompt: dark"), "embedded")
@example(replace(REQUEST, prompt="a fox\nSteps: 3, Seed: 1"), 'a, b: "c"\nd')
@example(replace(REQUEST, prompt="", negative_prompt="dark"), "embedded")
def test_what_is_described_is_parsed_again(request: Request, model: str) -> None:
    text = metadata.describe(request, request.seed, replace(MODEL, id=model))
    assert metadata.parse(text) == replace(params_of(request), model=model)


@given(requests)
@example(replace(REQUEST, prompt="a\0fox\x1b[2J", negative_prompt="\x08"))
def test_the_parameters_survive_the_png_file(request: Request) -> None:
    text = metadata.describe(request, request.seed, MODEL)
    file = io.BytesIO(metadata.encode(Pixels(1, 1, b"abc"), text))
    image = Image.open(file)
    image.load()
    assert metadata.parse(image.text[metadata.CHUNK]) == params_of(request)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", image.text[metadata.CHUNK])


def test_the_form_is_the_one_that_other_tools_read() -> None:
    request = replace(REQUEST, negative_prompt="dark, blurry")
    assert metadata.describe(request, 8, MODEL).splitlines()[:2] == [
        "a red fox",
        "Negative prompt: dark, blurry",
    ]
    assert (
        "\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 8, Size: 128x96, Model: embedded, "
        "Model hash: dcfec67f3ca2, Version: text2image "
    ) in metadata.describe(request, 8, MODEL)


def test_parameters_of_other_tools_are_read() -> None:
    text = "a fox\nNegative prompt: dark\nSteps: 28, Sampler: DPM++ 2M, CFG scale: 7, Seed: 1, RNG: CPU"
    params = metadata.parse(text)
    assert params == RequestParams(
        prompt="a fox",
        negative_prompt="dark",
        steps=28,
        guidance_scale=7.0,
        seed=1,
        n=1,
        sampler="dpm++ 2m",
        quality="exact",
        clip_skip=0,
    )


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("Euler a", ("euler ancestral", None)),
        ("euler_ancestral", ("euler ancestral", None)),
        ("DPM++ 2M, Schedule type: Automatic", ("dpm++ 2m", None)),
        ("DPM++ 2M, Schedule type: Karras", ("dpm++ 2m", "karras")),
        ("DPM++ 2M SDE Exponential", ("dpm++ 2m sde", "exponential")),
        ("DPM++ 2M Karras, Schedule type: Automatic", ("dpm++ 2m", "karras")),
        # Without its schedule it would be another picture, so that it is refused when it is asked for.
        ("Euler, Schedule type: SGM Uniform", ("euler", "SGM Uniform")),
        ("Restart", ("Restart", None)),
        ("Restart Karras", ("Restart Karras", None)),
    ],
)
def test_samplers_and_schedules_are_read_as_other_tools_write_them(
    sampler: str, expected: tuple[str, str | None]
) -> None:
    params = metadata.parse(f"a fox\nSteps: 28, Sampler: {sampler}, Seed: 1")
    assert (params.sampler, params.schedule) == expected


def test_a_schedule_is_written_as_other_tools_read_it() -> None:
    karras = replace(REQUEST, sampler=Sampler.DPMPP_2M, schedule=Schedule.KARRAS)
    assert "Sampler: DPM++ 2M, Schedule type: Karras, " in metadata.describe(karras, 7, MODEL)
    assert "Schedule" not in metadata.describe(replace(karras, schedule=None), 7, MODEL)


def test_only_a_picture_that_is_not_exact_says_its_quality() -> None:
    fast = replace(REQUEST, quality=Quality.FAST)
    assert "Size: 128x96, Quality: fast, " in metadata.describe(fast, 7, MODEL)
    exact = metadata.describe(REQUEST, 7, MODEL)
    assert "Quality" not in exact
    # Else a server whose pictures are fast by default would draw another one.
    assert metadata.parse(exact).quality == "exact"


def test_adapters_are_written_as_a1111_writes_them() -> None:
    ink = (LoraWeight("ink", 0.8, "0123456789"), LoraWeight("paper", -1.0, "abcdefabcd"))
    text = metadata.describe(replace(REQUEST, loras=ink), 7, MODEL)
    assert text.startswith("a red fox <lora:ink:0.8> <lora:paper:-1>\nSteps: ")
    assert ', Lora hashes: "ink: 0123456789, paper: abcdefabcd", ' in text
    # Other tools hash otherwise, so that theirs pin nothing here.
    theirs = text.replace("0123456789", "0123456789ab")
    assert metadata.parse(theirs).loras == (replace(ink[0], hash=""), ink[1])
    # Without hashes nobody has said that they are more than words.
    assert metadata.parse("a <lora:x:1>\nSteps: 3").prompt == "a <lora:x:1>"


def test_what_steered_a_picture_is_named_as_a1111_names_it_and_has_to_be_added_again() -> None:
    shown = init_image((REQUEST.width, REQUEST.height))
    edges = Control("a net v1.1 [fp16]", shown, 0.8, 0.0, 0.5, "canny", "0123456789")
    depth = Control("depth", shown, hash="abcdefabcd")
    text = metadata.describe(replace(REQUEST, controls=(edges, depth)), 7, MODEL)
    assert (
        ', ControlNet 1: "Module: none, Model: depth [abcdefabcd], Weight: 1, Guidance Start: 0, '
        f'Guidance End: 1, Image hash: {shown.digest[:10]}", ' in text
    )
    params = metadata.parse(text)
    assert params.controls == (replace(edges, image=None), replace(depth, image=None))
    model = replace(
        MODEL, controls=tuple(ControlInfo(each.name, each.hash) for each in (edges, depth))
    )
    with pytest.raises(InvalidRequest, match="whose image is none; add it"):
        resolve(params, model)
    # Other tools hash otherwise, so that theirs pin nothing here.
    theirs = text.replace("abcdefabcd", "abcdefab")
    assert (metadata.parse(theirs).controls or ())[1].hash == ""
    with pytest.raises(ValueError, match="ControlNet 0 names no model"):
        metadata.parse('a cat\nSteps: 3, ControlNet 0: "Module: canny"')


def test_what_a_picture_began_from_is_named_and_has_to_be_added_again() -> None:
    request = replace(REQUEST, image=init_image(), strength=0.6)
    text = metadata.describe(request, 7, MODEL)
    assert f", Denoising strength: 0.6, Init image hash: {init_image().digest[:10]}, " in text
    params = metadata.parse(text)
    assert params.strength == 0.6
    with pytest.raises(InvalidRequest, match="strength: is of no use without an image"):
        resolve(params, MODEL)
    drawing = replace(MODEL, inputs=tuple(Input))
    again = resolve(replace(params, image=init_image()), drawing)
    assert again == request
    # Of one that was enlarged it is that of its second pass, and other tools enlarge otherwise.
    other = metadata.parse(f"{text}, Hires upscale: 2, Hires upscaler: R-ESRGAN 4x+")
    assert (other.strength, other.hires_scale, other.hires_strength) == (None, None, None)


def test_an_enlarged_picture_tells_its_second_pass_as_a1111_does() -> None:
    request = replace(REQUEST, hires_scale=1.5, hires_strength=0.4, hires_steps=12)
    text = metadata.describe(request, 7, MODEL)
    told = "Denoising strength: 0.4, Hires upscale: 1.5, Hires steps: 12, Hires upscaler: Lanczos"
    assert f"Size: 128x96, {told}, " in text
    assert metadata.parse(text) == params_of(request)


def test_an_upscaler_is_told_with_its_hash_and_meant_again() -> None:
    request = replace(
        REQUEST,
        hires_scale=2.0,
        hires_strength=0.4,
        hires_steps=12,
        hires_upscaler="4x, sharp [0123456789]",
    )
    text = metadata.describe(request, 7, MODEL)
    assert metadata.parse(text) == params_of(request)
    there = (UpscalerInfo("4x, sharp", "0123456789", 4, 96),)
    drawing = replace(MODEL, inputs=tuple(Input), max_side=512, upscalers=there)
    assert resolve(metadata.parse(text), drawing) == request
    other = (replace(there[0], hash="9876543210"),)
    with pytest.raises(InvalidRequest, match=r"hires_upscaler: names .* here it has 9876543210"):
        resolve(metadata.parse(text), replace(drawing, upscalers=other))


@pytest.mark.parametrize("text", ["", "a fox", "Steps: many"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the type is the promise
        metadata.parse(text)


def test_pixels_are_kept_exactly() -> None:
    rgb = bytes(range(2 * 3 * 3))
    image = Image.open(io.BytesIO(metadata.encode(Pixels(2, 3, rgb))))
    assert image.size == (2, 3)
    assert image.tobytes() == rgb
