"""Prompts mean the same in every dialect, as do the layer they are taken from and the words that files teach."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from PIL import ImageChops

from tests.e2e.conftest import EMBEDDING
from tests.e2e.harness import Server
from tests.e2e.test_pictures import assert_same, image_of
from tests.e2e.test_quality import openai, rest, said, told, v1
from text2image.client import Client, Completed

DIALECTS = pytest.mark.parametrize("ask", [rest, openai, v1])


def differ(one: bytes, other: bytes) -> bool:
    difference = ImageChops.difference(image_of(one), image_of(other))
    return max(high for _, high in difference.getextrema()) > 10


@DIALECTS
def test_a_layer_of_the_encoder_draws_another_picture_which_its_parameters_draw_again(
    server: Server, ask: Any
) -> None:
    usual, skipped = ask(server), ask(server, clip_skip=2)
    assert differ(usual, skipped)
    assert (told(usual).clip_skip, told(skipped).clip_skip) == (0, 2)
    with Client(server.address) as client:
        again = client.generate(**said(told(skipped)))[0].png
    assert_same(image_of(again), image_of(skipped))


def test_weights_and_words_of_files_draw_other_pictures(client: Client) -> None:
    def drawn(prompt: str) -> bytes:
        return client.generate(prompt, seed=3, steps=4)[0].png

    plain = drawn("a red cat")
    assert differ(plain, drawn("a (red:1.8) cat"))
    assert_same(image_of(plain), image_of(drawn("a (red:1.0) cat")))
    taught = drawn(f"a red cat, {EMBEDDING}")
    assert f"TI hashes: {EMBEDDING}: " in image_of(taught).text["parameters"].replace(chr(34), "")
    assert differ(taught, drawn("a red cat, "))


def test_models_tell_their_words_and_how_they_read(server: Server, client: Client) -> None:
    (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert model["embeddings"] == [EMBEDDING]
    info = client.model()
    assert [each.name for each in info.embeddings] == [EMBEDDING]
    assert (info.prompt_syntax, info.max_clip_skip) == ("a1111", 3)
    assert "broken.safetensors is left out" in server.log


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"text": "(cat:11)"}, "has a word that weighs 11"),
        ({"text": "a cat", "negative_prompt": "embedding:none"}, "names the embedding 'none'"),
        ({"text": "a cat", "clip_skip": 4}, "must be between 0 and 3"),
    ],
)
def test_what_cannot_be_drawn_is_a_bad_request(
    server: Server, more: dict[str, Any], message: str
) -> None:
    answer = httpx.post(f"{server.url}/generate", json=more)
    assert answer.status_code == 400
    assert message in answer.json()["message"]


def test_what_is_not_read_of_the_negative_prompt_is_told(server: Server, client: Client) -> None:
    body = {"text": "a cat", "steps": 2, "negative_prompt": "fox " * 90 + "zebra"}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=60).json()
    assert "the negative prompt was too long, left out: fox" in answer["message"]
    assert answer["message"].endswith("fox zebra")
    *_, last = client.stream(body["text"], steps=2, negative_prompt=body["negative_prompt"])
    assert isinstance(last, Completed)
    assert last.truncated == ""
    assert last.truncated_negative.endswith("fox zebra")
