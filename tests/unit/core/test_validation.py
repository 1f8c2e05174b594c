"""Requests: what is left out is filled, what is wrong is named, all of it at once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.init_images import init_image
from tests.samples import MODEL, requests
from text2image.core.errors import InvalidRequest
from text2image.core.messages import (
    Input,
    Request,
    RequestParams,
    Sampler,
    UpscalerInfo,
    steps_drawn,
)
from text2image.core.validation import MAX_SEED, MAX_STEPS, compose_prompt, resolve


def violations(**fields: Any) -> list[str]:
    with pytest.raises(InvalidRequest) as raised:
        resolve(RequestParams(**{"prompt": "a cat", **fields}), MODEL)
    return [violation.field for violation in raised.value.violations]


def test_what_is_left_out_takes_the_models_defaults() -> None:
    request = resolve(RequestParams(prompt="a cat"), MODEL)
    assert (request.width, request.height, request.n) == (MODEL.width, MODEL.height, 1)
    assert (request.steps, request.guidance_scale) == (MODEL.steps, MODEL.guidance_scale)
    assert request.sampler is MODEL.sampler
    assert request.negative_prompt == ""


def test_a_seed_that_is_left_out_is_drawn_at_random() -> None:
    seeds = {resolve(RequestParams(prompt="a cat"), MODEL).seed for _ in range(20)}
    assert len(seeds) == 20


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "prompt": ["", " \n", "x" * 4001, "\ud800"],
        "negative_prompt": ["x" * 4001, "\udfff"],
        "steps": [0, -1, 151],
        "width": [0, 63, 65, 264, -64],
        "height": [0, 63, 65, 264, -64],
        "guidance_scale": [-0.1, 30.1, math.nan, math.inf, -math.inf],
        "seed": [-1, MAX_SEED + 1],
        "n": [0, 11],
        "sampler": ["", "euler b"],
    }.items(),
)
def test_each_bad_value_is_named(field: str, values: list[Any]) -> None:
    for value in values:
        assert violations(**{field: value}) == [field]


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 1, "guidance_scale": 0, "seed": 0, "n": 10, "width": 64, "height": 256},
        {"steps": 150, "guidance_scale": 30, "seed": MAX_SEED, "n": 1, "prompt": "x" * 4000},
        {"sampler": "Euler Ancestral"},
    ],
)
def test_limits_belong_to_what_is_allowed(fields: dict[str, Any]) -> None:
    request = resolve(RequestParams(**{"prompt": "a cat", **fields}), MODEL)
    assert request.sampler in Sampler


def test_all_violations_come_in_one_answer() -> None:
    assert violations(prompt="", steps=0, n=11) == ["prompt", "steps", "n"]


@given(requests)
def test_the_seed_of_a_picture_is_one_to_ask_for(request: Request) -> None:
    for index in range(8):
        assert 0 <= request.seed_of(index) <= MAX_SEED


@given(st.text(), st.none() | st.text())
def test_the_context_follows_the_text(text: str, context: str | None) -> None:
    prompt = compose_prompt(text, context)
    assert prompt.startswith(text)
    if not text.strip() or not (context or "").strip():
        assert prompt == text
    else:
        assert prompt == f"{text}, {context}"


PICTURES = replace(MODEL, inputs=tuple(Input))
UPSCALING = replace(PICTURES, upscalers=(UpscalerInfo("Sharp", "0123456789", 4, 96),))


@pytest.mark.parametrize(
    ("masked", "strength", "drawn"), [(False, 0.8, 16), (True, 1.0, 20), (False, 0.29, 5)]
)
def test_a_picture_to_begin_from_leaves_the_last_steps(
    masked: bool, strength: float, drawn: int
) -> None:
    given = {"strength": strength} if drawn == 5 else {}
    params = RequestParams(prompt="a cat", image=init_image(masked=masked), steps=20, **given)
    request = resolve(params, PICTURES)
    assert (request.strength, request.steps_drawn) == (strength, drawn)


@pytest.mark.parametrize(
    ("strength", "drawn", "by_a_flow"),
    [(0.0, 0, 0), (0.01, 0, 1), (0.29, 1, 2), (0.4, 2, 2), (0.5, 2, 3), (1.0, 5, 5)],
)
def test_a_flow_takes_the_step_whole_that_a_strength_reaches_into(
    strength: float, drawn: int, by_a_flow: int
) -> None:
    assert steps_drawn(5, strength, Sampler.EULER) == drawn
    assert steps_drawn(5, strength, Sampler.FLOW_EULER) == by_a_flow
    assert steps_drawn(5, strength, Sampler.FLOW_HEUN) == by_a_flow


def test_a_picture_needs_no_prompt() -> None:
    assert resolve(RequestParams(prompt="", image=init_image()), PICTURES).prompt == ""


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"strength": 0.5}, "strength: is of no use without an image"),
        ({"mask": b"x"}, "mask: is of no use without an image"),
        ({"image": b"x"}, "image: is a file, and those are read by gateways alone"),
        ({"image": init_image(), "strength": 1.5}, "strength: is 1.5; it must be between 0 and 1"),
        ({"image": init_image(), "strength": float("nan")}, "strength: is nan"),
        (
            {"image": init_image(), "strength": 0.3, "steps": 3},
            "strength: is 0.3, and of 3 steps that leaves none; .* at least 0.334",
        ),
        ({"image": init_image(), "strength": 0.0}, "strength: is 0, and of 20 steps"),
    ],
)
def test_what_does_not_go_with_a_picture_is_told(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        resolve(RequestParams(**{"prompt": "a cat", "steps": 20, **fields}), PICTURES)


def test_the_least_strength_that_is_told_leaves_a_step() -> None:
    for steps in range(1, MAX_STEPS + 1):
        least = math.ceil(1000 / steps) / 1000
        assert int(steps * least) >= 1


def test_an_enlarged_picture_takes_as_many_steps_again() -> None:
    params = RequestParams(prompt="a cat", steps=10, width=64, height=96, hires_scale=1.3)
    request = resolve(params, PICTURES)
    assert (request.hires_scale, request.hires_strength, request.hires_steps) == (1.3, 0.5, 10)
    assert request.final_size == (80, 128)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hires_strength": 0.5}, "hires_strength: is of no use without hires_scale"),
        ({"hires_steps": 5}, "hires_steps: is of no use without hires_scale"),
        ({"hires_upscaler": "Sharp"}, "hires_upscaler: is of no use without hires_scale"),
        (
            {"hires_scale": 2, "hires_upscaler": "Soft"},
            "hires_upscaler: is 'Soft'; there are Lanczos, Sharp",
        ),
        ({"hires_scale": 1.0}, "hires_scale: is 1.0; it must be above 1 and at most 4"),
        ({"hires_scale": float("nan")}, "hires_scale: is nan"),
        ({"hires_scale": 2.5}, "hires_scale: is 2.5, which makes 320x320 pixels; .* at most 256"),
        ({"hires_scale": 2, "hires_steps": 0}, "hires_steps: is 0"),
        ({"hires_scale": 2, "hires_strength": 2.0}, "hires_strength: is 2.0"),
        ({"hires_scale": 2, "hires_strength": 0.01}, "hires_strength: is 0.01, and of 20 steps"),
        ({"hires_scale": 2, "image": init_image()}, "hires_scale: goes with a text alone"),
    ],
)
def test_what_is_wrong_with_a_second_pass_is_told(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        resolve(RequestParams(**{"prompt": "a cat", "steps": 20, **fields}), UPSCALING)


@pytest.mark.parametrize(
    ("named", "chosen"),
    [
        (None, None),
        ("none", None),
        ("lanczos", None),
        ("sharp", "Sharp [0123456789]"),
        ("Sharp [0123]", "Sharp [0123456789]"),
    ],
)
def test_an_upscaler_is_found_as_people_write_it(named: str | None, chosen: str | None) -> None:
    params = RequestParams(prompt="a cat", hires_scale=1.5, hires_upscaler=named)
    assert resolve(params, UPSCALING).hires_upscaler == chosen


def test_a_model_that_draws_from_a_text_alone_enlarges_nothing() -> None:
    with pytest.raises(InvalidRequest, match="hires_scale: is not for this model; embedded draws"):
        resolve(RequestParams(prompt="a cat", hires_scale=1.5), MODEL)
