"""gRPC-Web as a browser's library speaks it, over HTTP; both forms."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import httpx
from google.protobuf.message import Message

TRAILERS = 0x80


class Frame(NamedTuple):
    flag: int
    content: bytes


def framed(message: Message | bytes, flag: int = 0) -> bytes:
    content = message if isinstance(message, bytes) else message.SerializeToString()
    return struct.pack(">BI", flag, len(content)) + content


def frames_in(body: bytes) -> Iterator[Frame]:
    while body:
        flag, size = struct.unpack_from(">BI", body)
        assert len(body) >= 5 + size, "a frame is cut off"
        yield Frame(flag, body[5 : 5 + size])
        body = body[5 + size :]


class Answer(NamedTuple):
    """What a call got: messages as they were sent, and trailers by name."""

    messages: Sequence[bytes]
    trailers: dict[str, str]

    @property
    def status(self) -> int:
        return int(self.trailers["grpc-status"])


def call(
    url: str, method: str, body: bytes, *, text: bool = False, **headers: str
) -> tuple[httpx.Response, Answer]:
    """Sends a body to a method of `text2image.v1`."""
    kind = "application/grpc-web-text" if text else "application/grpc-web+proto"
    answer = httpx.post(
        f"{url}/text2image.v1.ImageGeneration/{method}",
        content=base64.b64encode(body) if text else body,
        headers={"Content-Type": kind, "X-Grpc-Web": "1", **headers},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    raw = answer.content
    if text:
        raw = b"".join(base64.b64decode(each) for each in re.findall(rb"[^=]+=*", raw))
    *messages, last = frames_in(raw)
    assert last.flag == TRAILERS
    assert all(frame.flag == 0 for frame in messages)
    lines = last.content.decode().split("\r\n")[:-1]
    pairs = (line.partition(":") for line in lines)
    trailers = {name: value.strip() for name, _, value in pairs}
    return answer, Answer([frame.content for frame in messages], trailers)
