"""A body is read if it is JSON, and only as long as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from text2image.api import asgi, forms
from text2image.api.rest import GenerateRequest
from text2image.core.errors import (
    InvalidRequest,
    PayloadTooLarge,
    RequestTimeout,
    Text2ImageError,
    UnsupportedMediaType,
)
from text2image.core.messages import RequestParams
from text2image.core.settings import get_settings


class Body(pydantic.BaseModel):
    text: str
    image: str = ""


def sending(chunks: Sequence[bytes], *, kind: str = "application/json") -> Request:
    """A request that sends these chunks, and then no more of the body that it has begun."""
    left = list(chunks)

    async def receive() -> Any:
        if not left:
            await asyncio.Event().wait()
        chunk = left.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": not chunk.endswith(b"}")}

    headers = [(b"content-type", kind.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def test_a_body_that_stops_half_way_is_given_up_and_its_client_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asgi, "BODY_TIMEOUT", 0.01)
    with pytest.raises(RequestTimeout, match=r"did not arrive within 0\.01 s") as raised:
        await asgi.read_json(sending([b'{"text": ']), Body)
    # It is the client that was too slow, and no server behind this one.
    assert raised.value.http_status == 408


async def test_a_body_may_come_in_pieces() -> None:
    body = await asgi.read_json(sending([b'{"text": ', b'"a cat"', b"}"]), Body)
    assert body.text == "a cat"


@pytest.mark.parametrize(
    "kind", ["", "text/json", "json", "application/jsonp", "xapplication/json"]
)
async def test_what_is_not_called_json_is_not_read(kind: str) -> None:
    with pytest.raises(UnsupportedMediaType, match="send JSON"):
        # Of this body nothing would ever come.
        await asgi.read_json(sending([], kind=kind), Body)


LIMIT = get_settings().max_body_bytes
BOUNDARY = "xxYYxx"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


async def test_a_body_may_be_larger_for_the_sake_of_a_picture_in_it() -> None:
    large = b'{"text": "a cat", "image": "' + b"x" * LIMIT + b'"}'
    chunks = [large[:100], large[100:LIMIT], large[LIMIT:]]
    body = await asgi.read_json(sending(chunks), Body, pictures=True)
    assert len(body.image) == LIMIT
    with pytest.raises(PayloadTooLarge, match=f"larger than {LIMIT} bytes"):
        await asgi.read_json(sending(chunks), Body)


async def test_a_body_without_a_picture_is_no_larger_for_it() -> None:
    large = b'{"text": "' + b"x" * LIMIT + b'"}'
    with pytest.raises(PayloadTooLarge, match=f"larger than {LIMIT} bytes"):
        await asgi.read_json(sending([large]), Body, pictures=True)


async def test_a_picture_has_a_limit_too() -> None:
    settings_ = get_settings()
    most = LIMIT + asgi.encoded_bytes(settings_)
    chunks = [b'{"image": "', *[b"x" * (1 << 20)] * (most // (1 << 20) + 1), b'"}']
    with pytest.raises(PayloadTooLarge, match=f"larger than {most} bytes"):
        await asgi.read_json(sending(chunks), Body, pictures=True)


def form(*parts: tuple[str, str, bytes]) -> bytes:
    """A form of parts, each of a name, what follows that in its header, and its content."""
    body = b""
    for name, more, content in parts:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def sent(body: bytes, kind: str = FORM) -> Request:
    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", kind.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


FILE = '; filename="a.png"'
TEXT = ("text", "", b"a cat")


async def test_a_form_has_fields_as_text_and_pictures_as_files_or_base64() -> None:
    parts = [("text", "", b"a cat"), ("n", "", b"2"), ("guidance_scale", "", b"3.5")]
    body = form(*parts, ("images_only", "", b"true"), ("image[]", FILE, b"\x89PNG"))
    read = await forms.read_form(sent(body))
    asked = read.parsed(GenerateRequest)
    assert (asked.n, asked.guidance_scale, asked.images_only) == (2, 3.5, True)
    params = read.added_to(RequestParams(prompt="a cat"))
    assert (params.image, params.mask) == (b"\x89PNG", None)
    text = await forms.read_form(sent(form(("mask", "", b"data:image/png;base64,iVA="))))
    assert text.added_to(params).mask == b"\x89P"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (form(("text", FILE, b"a cat")), "text: is a file"),
        (form(("text", "", b"a"), ("text", "", b"b")), "text: is there twice"),
        (
            form(TEXT, ("image", FILE, b"a"), ("image", FILE, b"b")),
            "image: is there 2 times; send one",
        ),
        (form(TEXT, ("image", "", b"%")), "image: is no base64"),
        (form(("text", "", b"a"), ("n", "", b"two")), "n: "),
        (form(("text", "", b"a"), ("colour", "", b"red")), "colour: is not a field"),
        (b"--other", "body: is no form"),
        (form(("text", "", b"x" * (LIMIT + 1)), ("image", FILE, b"a")), "body: is no form"),
    ],
)
async def test_what_is_wrong_with_a_form_is_told(body: bytes, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        await drawn_from(body)


async def drawn_from(body: bytes, kind: str = FORM) -> RequestParams:
    read = await forms.read_form(sent(body, kind))
    return read.added_to(read.parsed(GenerateRequest).params())


@settings(max_examples=300, deadline=None, database=None)
@given(st.data())
def test_no_form_does_harm(data: st.DataObject) -> None:
    """Each is read, or refused in words."""
    whole = bytearray(form(("text", "", b"a cat"), ("image", FILE, b"abc"), ("n", "", b"1")))
    for _ in range(data.draw(st.integers(1, 6))):
        start = data.draw(st.integers(0, len(whole) - 1))
        end = start + data.draw(st.integers(0, 9))
        whole[start:end] = data.draw(st.binary(max_size=9) | st.sampled_from([b"\r\n", b"--"]))
    kind = data.draw(st.sampled_from([FORM, f"{FORM}; charset=\xff", "multipart/form-data"]))
    try:
        asyncio.run(drawn_from(bytes(whole), kind))
    except Text2ImageError as refusal:
        told = refusal
    else:
        return
    assert told.http_status in (400, 413, 415)
