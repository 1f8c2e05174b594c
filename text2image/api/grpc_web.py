"""gRPC-Web: `text2image.v1` for pages in browsers, which cannot speak gRPC, on the HTTP port and with its rules.

A message is a frame of a flag, its length in four bytes, and itself; trailers are one more, at the end of the body
(grpc/grpc, doc/PROTOCOL-WEB.md). Both forms are taken, binary and as base64. The servicer is the one of the gRPC port.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import re
import struct
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, NoReturn, cast
from urllib.parse import quote

import grpc
from fastapi import APIRouter
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from text2image.api import rest, v1_grpc, v1_jobs_grpc
from text2image.api.asgi import PICTURES, caller_of, gateway_of, read_body
from text2image.core.errors import (
    FieldViolation,
    InvalidRequest,
    UnsupportedMediaType,
)
from text2image.core.settings import get_settings
from text2image.net import rpc_errors
from text2image.net.rpc import Context, Handler, as_ours, deserializer

router = APIRouter()
_KIND = re.compile(r"application/grpc-web(-text)?(\+proto)?", re.IGNORECASE)
# Bodies have no sign of a picture in them as those in JSON have: what is too large otherwise is refused by its fields.
_ANY = (b"",)
_TRAILERS, _COMPRESSED = 0x80, 0x01
_HEAD = struct.Struct(">BI")
# Of `grpc-timeout`: at most eight digits and a unit.
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])", re.ASCII)
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

# By their names in a path.
SERVICES = {each.full_name: each for each in (v1_grpc.SERVICE, v1_jobs_grpc.SERVICE)}

Metadata = Sequence[tuple[str, str | bytes]]


class _Aborted(Exception):
    def __init__(self, code: grpc.StatusCode, details: str, trailers: Metadata) -> None:
        self.code, self.details, self.trailers = code, details, trailers


class _WebContext:
    """As much of a gRPC call as the servicer asks for, of an HTTP request."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._remaining = _timeout_in(request.headers.get("grpc-timeout"))
        self._trailers: Metadata = ()

    def invocation_metadata(self) -> Metadata:
        return [(name.lower(), value) for name, value in self._request.headers.items()]

    def peer(self) -> str:
        client = self._request.client
        if client is None:
            return "unix:"
        return f"ipv6:[{client.host}]:0" if ":" in client.host else f"ipv4:{client.host}:0"

    def time_remaining(self) -> float | None:
        return self._remaining

    def set_trailing_metadata(self, trailers: Metadata) -> None:
        self._trailers = trailers

    def trailing_metadata(self) -> Metadata:
        return self._trailers

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailers: Metadata = ()
    ) -> NoReturn:
        raise _Aborted(code, details, trailers)


async def _call(request: Request, method: str) -> Response:
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip()
    if not (form := _KIND.fullmatch(kind)):
        reason = f"send gRPC-Web with the header Content-Type: application/grpc-web+proto, not {kind[:80]!r}"
        return rest.error_response(UnsupportedMediaType(reason))
    as_text = bool(form[1])
    message: bytes | Exception
    try:
        # Before its body is read.
        caller_of(request)
        # The stream that answers must not wait for it: it listens for the client to leave.
        message = _message_in(await read_body(request, _ANY), as_text=as_text)
    except Exception as error:
        message = error
    frames = _frames(request, method, message, as_text=as_text)
    return StreamingResponse(frames, media_type=f"application/grpc-web{form[1] or ''}+proto")


for _name in SERVICES:
    router.post(f"/{_name}/{{method}}", name=_name, include_in_schema=False)(_call)


async def _frames(
    request: Request, method: str, message: bytes | Exception, *, as_text: bool
) -> AsyncGenerator[bytes, None]:
    """The answer to a call, or the error that its body is; however it ends, the last frame says."""
    written = base64.b64encode if as_text else bytes
    try:
        if isinstance(message, Exception):
            raise message
        context = _WebContext(request)
        async with aclosing(_answers(request, method, message, context)) as answers:
            async for answer in answers:
                yield written(_frame(0, answer.SerializeToString()))
        yield written(_ending(grpc.StatusCode.OK, "", context.trailing_metadata()))
    except _Aborted as end:
        yield written(_ending(end.code, end.details, end.trailers))
    except Exception as error:
        status = rpc_errors.status_of(as_ours(error))
        yield written(_ending(status.code, status.details, status.trailing_metadata or ()))


async def _answers(
    request: Request, method: str, message: bytes, context: _WebContext
) -> AsyncGenerator[Message, None]:
    settings = get_settings()
    service = SERVICES[request.scope["route"].name]
    handlers = _handlers(request, service)
    known = service.methods_by_name.get(method)
    if known is None or known.client_streaming:
        reason = f"{service.full_name} has no method {method[:80]!r} for pages"
        raise _Aborted(grpc.StatusCode.UNIMPLEMENTED, reason, ())
    parse = deserializer(
        GetMessageClass(known.input_type),
        settings.max_body_bytes,
        picture_bytes=PICTURES * settings.max_image_bytes,
    )
    answer: Any = handlers[method](parse(message), cast("Context", context))
    if not inspect.isasyncgen(answer):
        yield await answer
        return
    events = cast("AsyncGenerator[Message, None]", answer)
    async with aclosing(events):
        async for event in events:
            yield event


def _handlers(request: Request, service: ServiceDescriptor) -> dict[str, Handler]:
    gateway = gateway_of(request)
    if service is v1_jobs_grpc.SERVICE:
        return v1_jobs_grpc.JobsService(gateway, request.app.state.jobs, over_http=True).methods
    return v1_grpc.ImageGeneration(gateway, get_settings(), over_http=True).methods


def _message_in(body: bytes, *, as_text: bool) -> bytes:
    """The one message that a body holds.

    Raises:
        InvalidRequest: it holds none, more than one, or what is no frame.
    """
    try:
        framed = _decoded(body) if as_text else body
        flag, size = _HEAD.unpack_from(framed)
    except (struct.error, binascii.Error):
        raise _no_frame("holds no frame of gRPC-Web") from None
    if flag & _COMPRESSED:
        raise _Aborted(grpc.StatusCode.UNIMPLEMENTED, "compressed messages are not read", ())
    if flag or len(framed) != _HEAD.size + size:
        raise _no_frame("must hold one frame with one message, of the length that it names")
    return framed[_HEAD.size :]


def _decoded(text: bytes) -> bytes:
    """What base64 stands for; several pieces of it, each with its own padding, may follow each other."""
    pieces = re.findall(rb"[^=]+=*", text)
    return b"".join(base64.b64decode(piece, validate=True) for piece in pieces)


def _no_frame(reason: str) -> InvalidRequest:
    return InvalidRequest(FieldViolation("body", reason))


def _frame(flag: int, content: bytes) -> bytes:
    return _HEAD.pack(flag, len(content)) + content


def _ending(code: grpc.StatusCode, details: str, trailers: Metadata) -> bytes:
    number, _ = code.value
    lines = [f"grpc-status: {number}"]
    if details:
        lines.append(f"grpc-message: {quote(details, safe=' !#$&()*+,/:;=?@[]<>{}|^`~')}")
    for name, value in trailers:
        if isinstance(value, bytes):
            value = base64.b64encode(value).decode().rstrip("=")
        lines.append(f"{name}: {value}")
    return _frame(_TRAILERS, "".join(f"{line}\r\n" for line in lines).encode())


def _timeout_in(text: str | None) -> float | None:
    """Seconds that `grpc-timeout` gives.

    Raises:
        InvalidRequest: it is no such number.
    """
    if text is None:
        return None
    if not (found := _TIMEOUT.fullmatch(text)):
        reason = "must be at most eight digits and one of H, M, S, m, u and n"
        raise InvalidRequest(FieldViolation("grpc-timeout", reason))
    return int(found[1]) * _UNITS[found[2]]
