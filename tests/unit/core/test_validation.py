"""Requests: what is left out is filled, what is wrong is named, all of it at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.samples import MODEL, requests
from text2image.core.errors import InvalidRequest
from text2image.core.messages import Request, RequestParams, Sampler
from text2image.core.validation import MAX_SEED, compose_prompt, resolve


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
