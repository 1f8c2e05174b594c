"""One question asked in every dialect, and what each answers, told alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx

from tests.e2e.harness import Server
from text2image.core.errors import QuotaExceeded, Text2ImageError
from text2image.net import rpc_errors, wire
from text2image.net import text2image_pb2 as seed
from text2image.v1 import image_generation_pb2 as v1

SECONDS = 250.0


@dataclass(frozen=True)
class Answer:
    """An HTTP status, the same in band or by its gRPC code; `kind` is what its dialect calls an error."""

    status: int
    message: str = ""
    kind: str | None = None
    retry_after: float | None = None
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    subject: str | None = None


Ask = Callable[..., Answer]


def ask_rest(server: Server, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    body = {"text": "a cat", **fields}
    answer = httpx.post(f"{server.url}/generate", json=body, headers=headers, timeout=SECONDS)
    told = answer.json()
    assert told["status_code"] == answer.status_code
    retry_after = told.get("retry_after")
    if retry_after is not None:
        assert int(answer.headers["Retry-After"]) >= retry_after
    return Answer(
        answer.status_code, told["message"], told.get("reason"), retry_after, answer.headers
    )


def ask_openai(server: Server, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    url = f"{server.url}/v1/images/generations"
    answer = httpx.post(url, json={"prompt": "a cat", **fields}, headers=headers, timeout=SECONDS)
    error = answer.json().get("error", {})
    retry_after = answer.headers.get("Retry-After")
    return Answer(
        answer.status_code,
        error.get("message", ""),
        error.get("type"),
        float(retry_after) if retry_after else None,
        answer.headers,
    )


# What fields are called in A1111's dialect.
_A1111 = {"n": "batch_size", "sampler": "sampler_name", "schedule": "scheduler"}


def ask_a1111(server: Server, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    url = f"{server.url}/sdapi/v1/txt2img"
    body = {"prompt": "a cat", **{_A1111.get(name, name): each for name, each in fields.items()}}
    answer = httpx.post(url, json=body, headers=headers, timeout=SECONDS)
    told = answer.json()
    retry_after = answer.headers.get("Retry-After")
    return Answer(
        answer.status_code,
        told.get("errors", ""),
        told.get("error"),
        float(retry_after) if retry_after else None,
        answer.headers,
    )


def ask_seed(server: Server, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    with grpc.insecure_channel(server.address) as channel:
        method = channel.unary_unary(
            "/Text2ImageService/GenerateImage",
            seed.ImageRequest.SerializeToString,
            seed.ImageResponse.FromString,
        )
        request = seed.ImageRequest(text="a cat", **fields)
        answer = method(request, timeout=SECONDS, metadata=metadata(headers))
    retry_after = answer.retry_after if answer.HasField("retry_after") else None
    return Answer(answer.status_code, answer.message, retry_after=retry_after)


def ask_v1(server: Server, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    request = v1.GenerateRequest(prompt="a cat", **fields)
    return in_v1(server, headers, lambda stub: stub.Generate, request)


def in_v1(
    server: Server,
    headers: dict[str, str] | None,
    method: Callable[[Any], Any],
    request: Any,
) -> Answer:
    """What a method of v1 answers, streaming or not; of a stream that goes on for ever the first message is enough."""
    with grpc.insecure_channel(server.address) as channel:
        try:
            answer = method(wire.stub(channel))(
                request, timeout=SECONDS, metadata=metadata(headers)
            )
            if isinstance(request, v1.WatchStatusRequest):
                next(answer)
            elif isinstance(request, v1.GenerateRequest):
                list(answer)
            return Answer(200)
        except grpc.RpcError as error:
            return _told(rpc_errors.error_from(error))


def _told(error: Text2ImageError | None) -> Answer:
    assert error, "an error without ErrorInfo"
    return Answer(
        error.http_status,
        error.message,
        error.grpc_code,
        error.retry_after,
        subject=error.subject if isinstance(error, QuotaExceeded) else None,
    )


def metadata(headers: dict[str, str] | None) -> list[tuple[str, str]]:
    return [(name.lower(), value) for name, value in (headers or {}).items()]


DIALECTS: dict[str, Ask] = {
    "rest": ask_rest,
    "openai": ask_openai,
    "a1111": ask_a1111,
    "grpc": ask_seed,
    "grpc v1": ask_v1,
}
# By status: what an error is called in the dialects that have a word for it.
KINDS = {
    401: {
        "rest": "UNAUTHENTICATED",
        "openai": "authentication_error",
        "a1111": "Unauthenticated",
        "grpc v1": "UNAUTHENTICATED",
    },
    403: {
        "rest": "PERMISSION_DENIED",
        "openai": "permission_error",
        "a1111": "PermissionDenied",
        "grpc v1": "PERMISSION_DENIED",
    },
    429: {
        "rest": "QUOTA_EXCEEDED",
        "openai": "rate_limit_error",
        "a1111": "QuotaExceeded",
        "grpc v1": "RESOURCE_EXHAUSTED",
    },
}
