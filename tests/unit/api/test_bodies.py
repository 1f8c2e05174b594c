"""A body is read if it is JSON, and only as long as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pydantic
import pytest
from starlette.requests import Request

from text2image.api import asgi
from text2image.core.errors import RequestTimeout, UnsupportedMediaType


class Body(pydantic.BaseModel):
    text: str


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
