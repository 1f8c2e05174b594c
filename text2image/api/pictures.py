"""Answers that hold pictures: put together before they are sent, they would take several times their size."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# Bytes of a file that are turned into base64 at once; three of them make four letters.
_CHUNK = 3 << 16


class PictureResponse(Response):
    """JSON in which bytes stand for their base64, which is made piece by piece as it is sent."""

    media_type = "application/json"

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__()
        self._parts = list(parts_of(content))
        self.headers["Content-Length"] = str(sum(map(length_of, self._parts)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        for part in self._parts:
            for sent in encoded(part):
                await send({"type": "http.response.body", "body": sent, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def parts_of(content: Mapping[str, Any]) -> Iterator[str | bytes]:
    """The text of the JSON, and between it the files whose base64 belongs there."""
    files: list[bytes] = []
    # Stands for a file; nobody can have written it into a prompt.
    mark = secrets.token_hex(16)

    def kept(file: bytes) -> str:
        files.append(file)
        return mark

    text = json.dumps(content, default=kept, ensure_ascii=False, separators=(",", ":"))
    first, *others = text.split(mark)
    yield first
    for file, following in zip(files, others, strict=True):
        yield file
        yield following


def length_of(part: str | bytes) -> int:
    return len(part.encode()) if isinstance(part, str) else (len(part) + 2) // 3 * 4


def encoded(part: str | bytes) -> Iterator[bytes]:
    if isinstance(part, str):
        yield part.encode()
        return
    for start in range(0, len(part), _CHUNK):
        yield base64.b64encode(part[start : start + _CHUNK])
