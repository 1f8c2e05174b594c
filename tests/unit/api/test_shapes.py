"""The short cut to what a body asks for never comes to anything else than the road."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tests.samples import MODEL
from text2image.api.openai_requests import ImagesRequest
from text2image.api.rest import GenerateRequest
from text2image.api.unread import DIALECTS
from text2image.core import validation
from text2image.core.errors import Text2ImageError
from text2image.core.lifecycle import Work
from text2image.core.messages import Embedding, ModelInfo, PromptSyntax, Request
from text2image.gateway.election import Elected
from text2image.gateway.generate import Gateway
from text2image.gateway.refusals import shape_of
from text2image.gateway.runners import Runners
from text2image.observe.metrics import GatewayMetrics

GENERATE, IMAGES = b"/generate", b"/v1/images/generations"
PROMPTS = {GENERATE: "text", IMAGES: "prompt"}
LONGEST = validation.MAX_PROMPT_CHARS
# What looks alike to Python or to a careless reader, and is not.
VALUES = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        1.0,
        2,
        2.5,
        "1",
        "",
        " ",
        "-",
        "euler",
        "no such",
        [],
        {},
        "x" * 5000,
    ]
)
# What a prompt may say besides what to show, rightly or not.
SAID = st.sampled_from(["(red:1.5) fox", "(fox:99)", "embedding:owl", "embedding:bat", "<lora:x>"])
TEXTS = st.one_of(
    VALUES, SAID, st.text(max_size=9), st.integers(LONGEST - 9, LONGEST + 1).map("x".__mul__)
)
NAMES = [
    *("negative_prompt", "context", "user", "width", "steps", "guidance_scale", "n", "sampler"),
    *("schedule", "quality", "model", "size", "stream", "response_format", "images_only", "colour"),
    *("mask", "strength", "clip_skip", "hires_scale", "hires_strength", "hires_steps"),
]
BODIES = st.dictionaries(st.sampled_from(NAMES), st.one_of(VALUES, TEXTS), max_size=3)


def gateway_of(model: ModelInfo) -> Gateway:
    metrics = GatewayMetrics(CollectorRegistry())
    gateway = Gateway(Runners([], 0, metrics), None, metrics, Work())
    serve(gateway, model)
    return gateway


def serve(gateway: Gateway, model: ModelInfo) -> None:
    gateway.runners._elected = Elected(default=model, served={model.id: model})


GATEWAY = gateway_of(
    replace(
        MODEL,
        prompt_syntax=PromptSyntax.A1111,
        embeddings=(Embedding("owl", hash="7", vectors=2),),
        max_clip_skip=2,
    )
)


def road(url: bytes, body: bytes) -> Request | None:
    """The shape of a request as the road has it, None for one with an error."""
    runners = GATEWAY.runners
    try:
        if url == GENERATE:
            params = GenerateRequest.model_validate_json(body).params()
        else:
            params = ImagesRequest.model_validate_json(body).params(runners.named)
        return shape_of(GATEWAY.resolve(params, runners.named(params.model)))
    except (Text2ImageError, ValueError):
        return None


@example(url=GENERATE, prompt="x" * (LONGEST - 9), fields={"context": "(" * 9})
@given(url=st.sampled_from([GENERATE, IMAGES]), prompt=TEXTS, fields=BODIES)
def test_a_body_comes_to_what_it_comes_to_on_the_road(
    url: bytes, prompt: Any, fields: dict[str, Any]
) -> None:
    asked = {PROMPTS[url]: prompt, **fields}
    body = json.dumps(asked).encode()
    texts = sum(len(value) for value in asked.values() if isinstance(value, str))
    shape = DIALECTS[url].shapes.of(body, GATEWAY)
    assert shape == road(url, body) or (shape is None and texts >= LONGEST - 1)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'"text"', b'{"text": "\xff"}', b"[" * 500, b'{"text": "\\ud800"}'),
        '{"text": "a fox"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"text": "a fox"}',
        b'{"text": "a fox", "guidance_scale": NaN}',
        b'{"text": "a fox", "guidance_scale": 1e999}',
        b'{"text": "a fox", "n": 1, "n": true}',
        b'{"text": "a fox", "n": %s}' % (b"1" * 9999),
    ],
)
def test_what_is_no_request_has_no_shape(body: bytes) -> None:
    assert road(GENERATE, body) is None
    assert DIALECTS[GENERATE].shapes.of(body, GATEWAY) is None


def test_bodies_that_differ_in_their_texts_alone_are_checked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway = gateway_of(MODEL)
    first = DIALECTS[GENERATE].shapes.of(b'{"text": "a fox", "context": "snow"}', gateway)
    assert first
    monkeypatch.setattr(validation, "resolve", lambda *_: 1 / 0)
    assert DIALECTS[GENERATE].shapes.of(b'{"text": "a bear", "context": "ice"}', gateway) == first
    for other in (b'{"text": "a bear"}', b'{"text": "a (bear:2)", "context": "ice"}'):
        with pytest.raises(ZeroDivisionError):
            DIALECTS[GENERATE].shapes.of(other, gateway)


def test_other_models_have_every_body_checked_anew() -> None:
    gateway, body = gateway_of(MODEL), b'{"text": "a fox"}'
    before = DIALECTS[GENERATE].shapes.of(body, gateway)
    serve(gateway, replace(MODEL, steps=MODEL.steps + 1))
    after = DIALECTS[GENERATE].shapes.of(body, gateway)
    assert before
    assert after == replace(before, steps=MODEL.steps + 1)
