"""Prompts longer than the text encoder has room for are drawn from what fits, and the rest is named."""

from __future__ import annotations

from typing import Any

import pytest

from tests.doubles import make_request
from tests.integration.engine.conftest import harness_for
from text2image.core.messages import Completed
from text2image.engine.models.contract import Model


def truncated(model: Model, prompt: str) -> str:
    harness = harness_for(model)
    generation = harness.submit(make_request(prompt, steps=1))
    harness.finish()
    ending: Any = harness.ending(generation)
    assert isinstance(ending, Completed)
    return ending.truncated


def test_a_prompt_that_fits_is_read_whole(embedded: Model) -> None:
    assert truncated(embedded, "a cat on a blue background") == ""


def test_what_found_no_room_is_told_in_the_users_own_words(embedded: Model) -> None:
    prompt = "A Cat " * 20 + "and Seventeen Foxes"
    rest = truncated(embedded, prompt)
    assert rest
    assert prompt.endswith(rest)
    assert prompt[: -len(rest)].endswith(" "), "it begins in the middle of a word"


@pytest.mark.parametrize("prompt", ["x" * 3000, "é" * 500, "日本語 " * 200, "\u202e" * 300])
def test_any_text_is_drawn_from(embedded: Model, prompt: str) -> None:
    assert isinstance(truncated(embedded, prompt), str)
