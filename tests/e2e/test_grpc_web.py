"""Browsers speak `text2image.v1` as gRPC-Web on the HTTP port, with the answers, errors and rules of the gRPC port."""

from __future__ import annotations

from urllib.parse import unquote

import httpx
import pytest
from google.protobuf.message import Message

from tests.e2e.harness import Server, eventually
from tests.web import call, framed
from text2image.client import Client
from text2image.v1 import image_generation_pb2 as pb

ASKED = pb.GenerateRequest(prompt="a fox", seed=5, steps=2, width=64, height=64)


@pytest.mark.parametrize("text", [False, True], ids=["binary", "base64"])
def test_a_page_draws_as_a_program_does(server: Server, client: Client, text: bool) -> None:
    http, answer = call(server.url, "Generate", framed(ASKED), text=text)
    assert answer.status == 0
    assert http.headers["X-Trace-Id"]
    events = [pb.GenerateResponse.FromString(each) for each in answer.messages]
    assert [each.WhichOneof("event") for each in events] == [
        "queued",
        "progress",
        "progress",
        "image",
        "completed",
    ]
    (same,) = client.generate("a fox", seed=5, steps=2, width=64, height=64)
    assert events[-2].image.png == same.png


@pytest.mark.parametrize(
    ("method", "asked", "kind"),
    [
        ("GetModel", pb.GetModelRequest(), pb.GetModelResponse),
        ("ListModels", pb.ListModelsRequest(), pb.ListModelsResponse),
        ("Cancel", pb.CancelRequest(request_id="nobody"), pb.CancelResponse),
    ],
)
def test_calls_with_one_answer(
    server: Server, method: str, asked: Message, kind: type[Message]
) -> None:
    _, answer = call(server.url, method, framed(asked))
    (message,) = answer.messages
    assert kind.FromString(message).IsInitialized()
    assert answer.status == 0


@pytest.mark.parametrize(
    ("method", "body", "status", "said"),
    [
        ("Generate", framed(pb.GenerateRequest(prompt="ä", steps=0)), 3, "steps"),
        ("Generate", framed(b"\xff\xff"), 3, "is not a valid GenerateRequest"),
        ("Generate", b"", 3, "no frame"),
        ("Generate", framed(ASKED)[:-1], 3, "one frame"),
        ("Generate", framed(ASKED) * 2, 3, "one frame"),
        ("Generate", framed(ASKED, flag=1), 12, "compressed"),
        ("Paint", framed(ASKED), 12, "Paint"),
        ("Generate", framed(pb.GenerateRequest(prompt="x" * (2 << 20))), 3, "at most 1048576"),
    ],
    ids=["field", "message", "empty", "short", "two", "compressed", "method", "large"],
)
def test_what_is_wrong_is_said_in_the_trailers(
    server: Server, method: str, body: bytes, status: int, said: str
) -> None:
    for text in (False, True):
        _, answer = call(server.url, method, body, text=text)
        assert answer.status == status
        assert said in unquote(answer.trailers["grpc-message"])
        assert answer.messages == []


def test_a_page_that_leaves_ends_its_work(server: Server) -> None:
    url = f"{server.url}/text2image.v1.ImageGeneration/Generate"
    asked = framed(pb.GenerateRequest(prompt="a fox", steps=150, n=4))
    kind = {"Content-Type": "application/grpc-web+proto"}
    with httpx.stream("POST", url, content=asked, headers=kind, timeout=120) as answer:
        assert next(answer.iter_raw())
    with server.engine() as engine:
        eventually(lambda: engine.status().active == 0, "its work has ended")


def test_a_deadline_is_kept_and_one_that_is_none_is_refused(server: Server) -> None:
    for timeout, status in (("1m", 4), ("soon", 3)):
        _, answer = call(server.url, "Generate", framed(ASKED), **{"grpc-timeout": timeout})
        assert answer.status == status


def test_what_is_no_grpc_web_is_answered_in_http(server: Server) -> None:
    url = f"{server.url}/text2image.v1.ImageGeneration/Generate"
    json = httpx.post(url, json={"prompt": "a fox"})
    assert (json.status_code, json.json()["reason"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    got = httpx.get(url)
    assert (got.status_code, got.headers["Allow"]) == (405, "POST")
    kind = {"Content-Type": "application/grpc-web+proto"}
    foreign = {**kind, "Origin": "http://evil.example"}
    assert httpx.post(url, content=framed(ASKED), headers=foreign).status_code == 403
    assert httpx.post(f"{url}/more", content=framed(ASKED), headers=kind).status_code == 404
