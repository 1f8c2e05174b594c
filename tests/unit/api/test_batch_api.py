"""The batchable method: each item ends in pictures or in an error of its own, in the order of the items."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from tests.samples import MODEL
from text2image.api.batch import draw_batch
from text2image.core.errors import Text2ImageError, Unavailable
from text2image.core.messages import (
    Completed,
    GeneratedImage,
    Pixels,
    Request,
    RequestParams,
    Timings,
)
from text2image.core.validation import resolve
from text2image.gateway import metadata


@dataclass
class Drawn:
    request: Request
    images: Sequence[GeneratedImage]
    completed: Completed


async def generate_many(requests: Sequence[RequestParams]) -> list[Drawn | Text2ImageError]:
    """A runner that is full for dogs."""
    results: list[Drawn | Text2ImageError] = []
    for params in requests:
        if "dog" in params.prompt:
            results.append(Unavailable("full", reason=Unavailable.FULL, retry_after=3))
            continue
        request = resolve(params, MODEL)
        image = GeneratedImage(0, request.seed, Pixels(1, 1, b"abc"), Timings(0, 0, 0))
        ended = Completed("and more" if "long" in params.prompt else "")
        results.append(Drawn(request, [image], ended))
    return results


async def test_items_end_on_their_own_and_in_order() -> None:
    items = [
        {"text": "a cat", "seed": 5},
        {"text": "a cat", "steps": "many"},
        {"text": "a dog"},
        {},
        {"text": "a fox", "context": "snow", "seed": 6},
    ]
    answers = await draw_batch(items, generate_many, lambda name: MODEL)
    assert [answer["status_code"] for answer in answers] == [200, 400, 503, 400, 200]
    assert answers[1]["violations"][0]["field"] == "steps"
    assert answers[2]["retry_after"] == 3
    assert answers[4]["seed"] == 6
    image = Image.open(io.BytesIO(base64.b64decode(answers[4]["image_base64"])))
    assert metadata.parse(image.text[metadata.CHUNK]).prompt == "a fox, snow"


async def test_an_item_is_told_what_of_its_prompt_was_left_out() -> None:
    items = [{"text": "a cat"}, {"text": "a long story"}]
    one, other = await draw_batch(items, generate_many, lambda name: MODEL)
    assert one["message"] == "Image generated successfully"
    assert other["message"].endswith("; the prompt was too long, left out: and more")


async def test_a_bad_context_fails_its_own_item_alone() -> None:
    items = [{"text": "a cat", "context": "x" * 4001}, {"text": "a cat"}]
    one, other = await draw_batch(items, generate_many, lambda name: MODEL)
    assert [violation["field"] for violation in one["violations"]] == ["context"]
    assert other["status_code"] == 200


async def test_an_empty_list_is_answered_by_one() -> None:
    assert await draw_batch([], generate_many, lambda name: MODEL) == []


async def test_an_item_that_asks_for_its_images_only_gets_them_once() -> None:
    items = [{"text": "a cat", "seed": 5, "images_only": True}]
    (answer,) = await draw_batch(items, generate_many, lambda name: MODEL)
    assert "image_base64" not in answer
    assert answer["images"][0]["image_base64"]
