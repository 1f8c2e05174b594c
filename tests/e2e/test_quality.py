"""A request may ask for less work, or for none to be left out, in every dialect that has a word for it."""

from __future__ import annotations

import base64
from dataclasses import fields
from typing import Any

import httpx
import pytest
from PIL import ImageChops

from tests.e2e.dialects import DIALECTS, SECONDS
from tests.e2e.harness import Server
from tests.e2e.test_pictures import assert_same, image_of
from text2image.client import Client
from text2image.core.messages import RequestParams
from text2image.gateway import metadata

FIELDS: dict[str, Any] = {"seed": 11, "steps": 6}


def rest(server: Server, **more: Any) -> bytes:
    body = {"text": "a cat", **FIELDS, **more}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=SECONDS)
    return base64.b64decode(answer.json()["images"][0]["image_base64"])


def openai(server: Server, **more: Any) -> bytes:
    body = {"prompt": "a cat", **FIELDS, **more}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=SECONDS)
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def v1(server: Server, **more: Any) -> bytes:
    with Client(server.address) as client:
        return client.generate("a cat", **FIELDS, **more)[0].png


def told(png: bytes) -> RequestParams:
    return metadata.parse(image_of(png).text[metadata.CHUNK])


def said(params: RequestParams) -> dict[str, Any]:
    """What a request says, as the client takes it."""
    names = (field.name for field in fields(RequestParams) if field.name != "mask_by_alpha")
    values = {name: getattr(params, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("ask", [rest, openai, v1])
def test_a_fast_picture_is_another_and_its_parameters_draw_it_again(
    server: Server, ask: Any
) -> None:
    exact, fast = ask(server, quality="exact"), ask(server, quality="fast")
    assert_same(image_of(exact), image_of(ask(server)))
    difference = ImageChops.difference(image_of(exact), image_of(fast))
    assert max(high for _, high in difference.getextrema()) > 20
    assert (told(exact).quality, told(fast).quality) == ("exact", "fast")
    again = said(told(fast))
    with Client(server.address) as client:
        assert_same(image_of(client.generate(**again)[0].png), image_of(fast))


@pytest.mark.parametrize("word", ["auto", "standard", "hd", "low", "medium", "high"])
def test_openais_own_words_say_nothing_of_how_a_picture_is_drawn(server: Server, word: str) -> None:
    assert told(openai(server, quality=word)).quality == "exact"


@pytest.mark.parametrize("dialect", ["rest", "grpc v1"])
def test_another_word_is_refused_where_it_means_nothing(server: Server, dialect: str) -> None:
    answer = DIALECTS[dialect](server, quality="best")
    assert answer.status == 400
    assert "is 'best'; it must be one of exact, fast" in answer.message
