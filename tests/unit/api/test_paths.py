"""Requests as clients write them come to the routes that are meant."""

from __future__ import annotations

from typing import Any

import pytest

from text2image.api.paths import Forgiving, canonical


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/generate", "/generate"),
        ("/generate/", "/generate"),
        ("/v1/generate/", "/generate"),
        ("/v1/images/generations/", "/v1/images/generations"),
        ("/images/generations", "/v1/images/generations"),
        ("/models", "/v1/models"),
        ("/models/owner/name/", "/v1/models/owner/name"),
        ("/v1/models/generate", "/v1/models/generate"),
        ("/v1/readyz", "/readyz"),
        ("/metrics/", "/metrics"),
        ("/modelsx", "/modelsx"),
        ("/v1/generate/more", "/v1/generate/more"),
        ("/v1", "/v1"),
        ("/models/a\nb\n", "/v1/models/a%0Ab%0A"),
        ("/generate\n", "/generate%0A"),
    ],
)
def test_a_path_is_brought_to_its_route(path: str, expected: str) -> None:
    assert canonical(path) == expected
    assert canonical(canonical(path)) == expected


async def test_head_is_get_without_its_body() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["method"] == "GET"
        length = [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": b"hello"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "HEAD", "path": "/v1/models"}
    await Forgiving(app)(scope, lambda: None, send)  # type: ignore[arg-type, return-value]
    assert sent[0]["headers"] == [(b"content-length", b"5")]
    assert sent[1]["body"] == b""
    assert scope["method"] == "HEAD", "the server itself must know what was asked"
