"""Whatever is wrong with a request, every transport says 400, names the field and gives the reason."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.harness import Server
from text2image.client import Client
from text2image.core.errors import InvalidRequest, PayloadTooLarge, Text2ImageError
from text2image.net import rpc_errors, text2image_pb2
from text2image.v1 import image_generation_pb2 as v1

GENERATE_IMAGE = "/Text2ImageService/GenerateImage"
JSON = b"application/json"
MEBIBYTE = 1 << 20

# What every transport can express: the fields of a request, and the one that is wrong with it.
BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": " \t\n"}, "prompt"),
    ({"prompt": "x" * 4001}, "prompt"),
    ({"negative_prompt": "x" * 4001}, "negative_prompt"),
    ({"steps": 0}, "steps"),
    ({"steps": 151}, "steps"),
    ({"steps": -1}, "steps"),
    ({"width": 100}, "width"),
    ({"width": 0}, "width"),
    ({"width": 8192}, "width"),
    ({"height": 132}, "height"),
    ({"height": -64}, "height"),
    ({"guidance_scale": -0.5}, "guidance_scale"),
    ({"guidance_scale": 30.5}, "guidance_scale"),
    ({"guidance_scale": math.nan}, "guidance_scale"),
    ({"guidance_scale": math.inf}, "guidance_scale"),
    ({"n": 0}, "n"),
    ({"n": 11}, "n"),
    ({"seed": -2}, "seed"),
    ({"sampler": "paint by numbers"}, "sampler"),
]
# As varints: 500 fields of both contracts' text and of numbers that neither has, from 100 on.
UNKNOWN_FIELDS = b"\x12\x03cat\x0a\x03cat" + b"".join(
    bytes([(tag & 0x7F) | 0x80, tag >> 7, 1]) for tag in (number << 3 for number in range(100, 600))
)
# What only JSON can get wrong.
BAD_JSON: list[tuple[Any, str]] = [
    ({"steps": "20"}, "steps"),
    ({"steps": 20.5}, "steps"),
    ({"steps": True}, "steps"),
    ({"steps": 10**30}, "steps"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 10**400}, "seed"),
    ({"guidance_scale": "5"}, "guidance_scale"),
    ({"guidance_scale": 10**400}, "guidance_scale"),
    ({"n": [1]}, "n"),
    ({"width": {}}, "width"),
    ({"sampler": 3}, "sampler"),
    ({"negative_prompt": 7}, "negative_prompt"),
    ({"stepz": 20}, "stepz"),
    ({"constructor": {"prototype": 1}}, "constructor"),
]
BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"a cat, please",
    "half of it": b'{"text": "a c',
    "invalid UTF-8": b'{"text": "\xff\xfe", "prompt": "\xff\xfe"}',
    "a lone surrogate": b'{"text": "\\ud800", "prompt": "\\ud800"}',
    "a list": b'["a cat"]',
    "null": b"null",
    "too deep": b"[" * 100_000,
    "a zip bomb of digits": b'{"steps": ' + b"9" * 100_000 + b"}",
}


class Transport:
    """One way to ask; `names` are those of its fields that go by another name than ours."""

    def __init__(self, ask: Callable[[dict[str, Any]], dict[str, str]], **names: str) -> None:
        self._ask = ask
        self._names = names

    def name(self, field: str) -> str:
        """What the transport calls a field of ours."""
        return self._names.get(field, field)

    def violations(self, fields: dict[str, Any]) -> dict[str, str]:
        """The reason by each field that was refused, as the transport calls it."""
        asked = {"prompt": "a cat", **fields}
        if "prompt" in self._names:
            asked[self._names["prompt"]] = asked.pop("prompt")
        return self._ask(asked)


@pytest.fixture(params=["rest", "openai", "grpc", "grpc v1"])
def transport(request: pytest.FixtureRequest, server: Server) -> Transport:
    match request.param:
        case "rest":
            return Transport(lambda fields: ask_rest(server, as_json(fields)), prompt="text")
        case "openai":
            return Transport(
                lambda fields: ask_openai(server, as_json(in_openai(fields))),
                width="size",
                height="size",
            )
        case "grpc":
            return Transport(lambda fields: ask_seed(server, fields), prompt="text")
        case _:
            return Transport(lambda fields: ask_v1(server, fields))


@pytest.mark.parametrize(("fields", "field"), BAD_FIELDS, ids=str)
def test_every_transport_names_the_bad_field_as_its_clients_sent_it(
    transport: Transport, fields: dict[str, Any], field: str
) -> None:
    violations = transport.violations(fields)
    assert list(violations) == [transport.name(field)]
    assert violations[transport.name(field)]


def test_all_bad_fields_are_named_at_once(transport: Transport) -> None:
    bad = {"prompt": "", "steps": 0, "seed": -2}
    assert set(transport.violations(bad)) == set(map(transport.name, bad))


@pytest.mark.parametrize(("fields", "field"), BAD_JSON, ids=lambda value: str(value)[:40])
def test_json_types_are_strict_and_unknown_fields_refused(
    server: Server, fields: dict[str, Any], field: str
) -> None:
    assert list(ask_rest(server, as_json({"text": "a cat", **fields}))) == [field]
    if field not in ("width", "height"):
        assert ask_openai(server, as_json({"prompt": "a cat", **fields}))


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_what_is_no_request_at_all_is_refused(server: Server, body: bytes) -> None:
    assert ask_rest(server, body)
    assert ask_openai(server, body)


def test_a_context_alone_is_nothing_to_draw(server: Server) -> None:
    assert list(ask_rest(server, b'{"context": "cyberpunk", "text": " "}')) == ["text"]
    assert "text" in ask_seed(server, {"context": "cyberpunk", "text": " "})


def test_a_context_that_is_too_long_is_named_itself(server: Server) -> None:
    """And not the text that it would have been added to. The other contracts have no context."""
    for text, context in (("a cat", "x" * 4001), ("x" * 3990, "y" * 20)):
        fields = {"text": text, "context": context}
        assert list(ask_rest(server, as_json(fields))) == ["context"]
        assert list(ask_seed(server, fields)) == ["context"]


def test_hundreds_of_unknown_fields_are_named_only_in_part(server: Server) -> None:
    """The whole list would be larger than what grpc takes for an error."""
    fields = {f"unknown{number}": number for number in range(500)}
    unknown = UNKNOWN_FIELDS
    v1_error, seed_answer = call_v1(server, unknown), call_seed(server, unknown)
    assert isinstance(v1_error, InvalidRequest)
    told = {
        "rest": list(ask_rest(server, as_json({"text": "a cat", **fields})).items()),
        "grpc v1": [(each.field, each.reason) for each in v1_error.violations],
    }
    assert [field for field, _ in told["rest"][:15]] == list(fields)[:15]
    assert [field for field, _ in told["grpc v1"][:15]] == [f"#{100 + n}" for n in range(15)]
    for violations in told.values():
        assert violations[15:] == [("request", "and 485 more bad fields")]
    assert seed_answer.status_code == 400
    assert "and 485 more bad fields" in seed_answer.message
    assert ask_openai(server, as_json({"prompt": "a cat", **fields}))


@pytest.mark.parametrize("timeout", ["soon", "0", "-1", "nan", "inf", "1e9", ""])
def test_a_timeout_must_be_a_number_of_seconds(server: Server, timeout: str) -> None:
    answer = post(server, "/generate", b'{"text": "a cat"}', {"X-Request-Timeout": timeout})
    assert answer.status_code == 400
    assert "X-Request-Timeout" in answer.json()["message"]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_body_over_the_limit_is_refused_over_http(server: Server, declared: bool) -> None:
    body = as_json({"text": "x" * MEBIBYTE})
    for path in ("/generate", "/v1/images/generations"):
        answer = post(server, path, body if declared else iter([body]))
        assert answer.status_code == 413
        assert str(MEBIBYTE) in answer.text


def test_a_client_that_asks_first_is_refused_before_it_sends(server: Server) -> None:
    head = (
        f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {10**12}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=60) as connection:
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_a_body_over_the_limit_is_refused_over_grpc(server: Server, client: Client) -> None:
    for size in (MEBIBYTE, 5 * MEBIBYTE):
        answer = call_seed(server, text2image_pb2.ImageRequest(text="x" * size).SerializeToString())
        assert answer.status_code == 413
        with pytest.raises(PayloadTooLarge):
            client.generate("x" * size)


BAD_MESSAGES = {
    "garbage": b"\xff\xff\xff\xff",
    "invalid UTF-8": b"\x12\x02\xff\xfe\x0a\x02\xff\xfe",
    "an unknown field": b"\x12\x03cat\x0a\x03cat" + b"\xa0\x06\x01",
    "a field of another type": b"\x12\x03cat\x0a\x03cat" + b"\x32\x02no" + b"\x2a\x02no",
    "cut off": b"\x12\x20cat",
}


@pytest.mark.parametrize("message", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_what_is_no_message_is_refused_over_grpc(server: Server, message: bytes) -> None:
    assert call_seed(server, message).status_code == 400
    assert isinstance(call_v1(server, message), InvalidRequest)


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/List",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_the_standard_services_refuse_what_is_no_message_too(server: Server, method: str) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.stream_stream(method, request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.RpcError) as raised:
            list(call(iter([b"\xff\xff"]), timeout=60))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_health_of_a_service_that_is_not_served_is_unknown(server: Server) -> None:
    asked = health_pb2.HealthCheckRequest(service="nowhere")
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.Check(asked, timeout=60)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        watching = stub.Watch(asked, timeout=60)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watching.cancel()
        served = stub.List(health_pb2.HealthListRequest(), timeout=60).statuses
    serving = {name for name, answer in served.items() if answer.status == answer.SERVING}
    ours = {"Text2ImageService", "text2image.v1.ImageGeneration", "text2image.v1.Jobs"}
    assert serving == {"", *ours}


def test_odd_headers_do_no_harm(server: Server) -> None:
    """Bytes that are no text, where others would decode them."""
    answer = post(server, "/generate", b'{"text": ""}', {b"Content-Type": JSON + b"; charset=\xff"})
    assert answer.status_code == 400
    assert list(answered(answer)) == ["text"]


@pytest.mark.parametrize("size", ["big", "0x0", "64", "64x64x64", "-64x64", "99999999x64"])
def test_openai_sizes_are_pixels(server: Server, size: str) -> None:
    assert list(ask_openai(server, as_json({"prompt": "a cat", "size": size}))) == ["size"]


def test_an_openai_size_is_told_which_side_is_wrong(server: Server) -> None:
    refused = ask_openai(server, as_json({"prompt": "a cat", "size": "128x132"}))
    assert refused == {"size": "height is 132 pixels"}


def test_openai_refuses_what_it_cannot_do(server: Server) -> None:
    for field, value in {
        "response_format": "binary",
        "output_format": "gif",
        "output_compression": 101,
        "background": "transparent",
        "model": "dall-e-3",
        "num_inference_steps": 0,
        "cfg_scale": 31,
        "frame_count": 4,
    }.items():
        assert list(ask_openai(server, as_json({"prompt": "a cat", field: value}))) == [field]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/generate", 405),
        ("DELETE", "/generate", 405),
        ("GET", "/v1/images/generations", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/generate/more", 404),
        ("GET", "/v1/chat/completions", 404),
    ],
)
def test_wrong_methods_and_paths_are_answered_in_our_shape(
    server: Server, method: str, path: str, status: int
) -> None:
    answer = httpx.request(method, f"{server.url}{path}")
    assert answer.status_code == status
    if path.startswith("/v1/"):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    else:
        assert answer.json()["status_code"] == status
    assert ("allow" in answer.headers) == (status == 405)


def as_json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


def post(
    server: Server, path: str, body: bytes | Iterator[bytes], headers: Any = None
) -> httpx.Response:
    headers = {"Content-Type": JSON, **(headers or {})}
    return httpx.post(f"{server.url}{path}", content=body, headers=headers, timeout=60)


def answered(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 400, answer.text
    content = answer.json()
    assert content["status_code"] == 400
    return {violation["field"]: violation["reason"] for violation in content["violations"]}


def ask_rest(server: Server, body: bytes) -> dict[str, str]:
    return answered(post(server, "/generate", body))


def in_openai(fields: dict[str, Any]) -> dict[str, Any]:
    """The same request in the words of OpenAI, which has one field for both sides."""
    rest = {name: value for name, value in fields.items() if name not in ("width", "height")}
    if rest != fields:
        rest["size"] = f"{max(0, fields.get('width', 128))}x{max(0, fields.get('height', 128))}"
    return rest


def ask_openai(server: Server, body: bytes) -> dict[str, str]:
    answer = post(server, "/v1/images/generations", body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] in error["message"]
    return split(error["message"])


def call_seed(server: Server, message: bytes) -> text2image_pb2.ImageResponse:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(
            GENERATE_IMAGE,
            request_serializer=bytes,
            response_deserializer=text2image_pb2.ImageResponse.FromString,
        )
        return call(message, timeout=60)


def ask_seed(server: Server, fields: dict[str, Any]) -> dict[str, str]:
    answer = call_seed(server, text2image_pb2.ImageRequest(**fields).SerializeToString())
    assert answer.status_code == 400, answer.message
    assert not answer.image_base64
    return split(answer.message)


def call_v1(server: Server, message: bytes) -> Text2ImageError | None:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_stream(
            "/text2image.v1.ImageGeneration/Generate",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        with pytest.raises(grpc.RpcError) as raised:
            list(call(message, timeout=60))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return rpc_errors.error_from(raised.value)


def ask_v1(server: Server, fields: dict[str, Any]) -> dict[str, str]:
    error = call_v1(server, v1.GenerateRequest(**fields).SerializeToString())
    assert isinstance(error, InvalidRequest)
    return {violation.field: violation.reason for violation in error.violations}


def split(message: str) -> dict[str, str]:
    """Fields and reasons from a message that joins them."""
    return dict(part.split(": ", 1) for part in message.split("; ") if ": " in part)
