"""What all clients of ours share: a request of fields by their names, and the errors of a call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc

from text2image.core.controls import parse_control
from text2image.core.errors import Cancelled, DeadlineExceeded, Text2ImageError, Unavailable
from text2image.core.loras import parse_lora
from text2image.core.messages import Control
from text2image.net import proxies, rpc_errors, wire
from text2image.v1 import image_generation_pb2 as pb

# What a client waits before it tries a server again that did not answer at all, in seconds.
_UNREACHABLE_RETRY_AFTER = 2.0
# What grpc itself may say on the client's side, without a word from the server.
_LOCAL: dict[str, type[Text2ImageError]] = {
    kind.grpc_code: kind for kind in (Cancelled, DeadlineExceeded)
}


def request_of(
    prompt: str, progress_every: int, preview_every: int, fields: dict[str, Any]
) -> pb.GenerateRequest:
    """A request of fields as `Client` takes them.

    Raises:
        OSError: a file that is named cannot be read.
        ValueError: a field is none, or its value none of its.
    """
    named = [
        parse_lora(each) if isinstance(each, str) else each for each in fields.get("loras") or ()
    ]
    for name in ("image", "mask"):
        if isinstance(fields.get(name), str | Path):
            fields = {**fields, name: Path(fields[name]).read_bytes()}
    steered = [_control(each) for each in fields.get("controls") or ()]
    return pb.GenerateRequest(
        prompt=prompt,
        progress_every=progress_every,
        preview_every=preview_every,
        **{**fields, "loras": wire.loras_to(named), "controls": wire.controls_to(steered)},
    )


def _control(given: Control | str) -> Control:
    control, path = parse_control(given) if isinstance(given, str) else (given, given.image)
    if isinstance(path, str | Path):
        control = replace(control, image=Path(path).read_bytes())
    return control


def error_of(error: grpc.RpcError, address: str) -> Text2ImageError:
    """The server's own error; where it sent none, the connection failed."""
    ours = rpc_errors.error_from(error)
    if ours is not None:
        return ours
    call = cast(grpc.Call, error)
    kind = _LOCAL.get(call.code().name)
    message = f"{call.code().name}: {call.details()}"
    if kind is not Cancelled:
        message += proxies.proxy_hint(address)
    return kind(message) if kind else unreachable(message)


def unreachable(message: str) -> Unavailable:
    """What a call ends with that found no server."""
    return Unavailable(message, reason=Unavailable.NO_RUNNER, retry_after=_UNREACHABLE_RETRY_AFTER)
