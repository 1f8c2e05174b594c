"""An answer with pictures is the JSON that it would be, and is never all in memory."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from text2image.api import rest
from text2image.api.pictures import PictureResponse
from text2image.core.messages import Picture, Timings
from text2image.gateway.generate import Drawing

MEBIBYTE = 1 << 20


async def sent(response: PictureResponse, take: Callable[[bytes], Any]) -> None:
    """Sends an answer; `take` gets each piece of its body."""

    async def send(message: Any) -> None:
        take(message.get("body", b""))

    await response({"type": "http"}, lambda: None, send)  # type: ignore[arg-type, return-value]


@given(st.lists(st.binary(max_size=10)), st.text(st.characters(exclude_categories=["Cs"])))
async def test_bytes_are_told_as_base64_and_all_else_as_it_is(
    files: list[bytes], text: str
) -> None:
    body = bytearray()
    response = PictureResponse({"text": text, "files": [{"png": file} for file in files]})
    await sent(response, body.extend)
    assert json.loads(body) == {
        "text": text,
        "files": [{"png": base64.b64encode(file).decode()} for file in files],
    }
    assert response.headers["Content-Length"] == str(len(body))
    assert response.headers["Content-Type"] == "application/json"


def drawing(count: int, size: int) -> Drawing:
    png = [Random(index).randbytes(size) for index in range(count)]
    pictures = [
        Picture(
            index=index,
            seed=index,
            width=1024,
            height=1024,
            png=png[index],
            path="",
            timings=Timings(0, 0, 0),
        )
        for index in range(count)
    ]
    return Drawing(pictures, "8 images generated successfully", remembered=False)


async def test_an_answer_takes_less_memory_than_one_of_its_pictures() -> None:
    drawn = drawing(8, 2 * MEBIBYTE)
    length = 0

    def count(piece: bytes) -> None:
        nonlocal length
        length += len(piece)

    tracemalloc.start()
    try:
        await sent(rest.response_of(drawn), count)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The first picture is there twice, as the first contract of this path has it.
    assert length > 9 * 2 * MEBIBYTE * 4 // 3
    assert peak < 2 * MEBIBYTE


async def test_whoever_wants_the_images_only_gets_none_of_them_twice() -> None:
    whole, bare = bytearray(), bytearray()
    drawn = drawing(2, 1000)
    await sent(rest.response_of(drawn), whole.extend)
    await sent(rest.response_of(drawn, images_only=True), bare.extend)
    body = json.loads(whole)
    assert body.pop("image_base64") == body["images"][0]["image_base64"]
    assert json.loads(bare) == body
