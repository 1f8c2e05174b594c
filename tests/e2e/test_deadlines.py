"""What cannot be finished in time is refused before any work is done, on every transport alike."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest

from tests.e2e.harness import Server
from tests.e2e.test_bad_input import GENERATE_IMAGE
from tests.e2e.test_cancellation import LONG, is_idle
from text2image.client import Client
from text2image.core.errors import Text2ImageError
from text2image.core.messages import Counters, Queued
from text2image.core.settings import LONGEST_NAMED_TIMEOUT
from text2image.net import text2image_pb2 as pb

FIELDS = {"steps": LONG}
REFUSED = 'text2image_refusals_total{reason="FULL"}'


@dataclass(frozen=True)
class Refusal:
    """How a request was refused: the HTTP status, or what is the same elsewhere, the words, and the retry delay."""

    status: int
    message: str
    retry_after: float | None


# Asks for a picture, with so many seconds to draw it or as many as the server gives.
Ask = Callable[[Server, float | None, dict[str, Any]], Refusal]


def over_http(server: Server, seconds: float | None, path: str, body: dict[str, Any]) -> Refusal:
    headers = {} if seconds is None else {"X-Request-Timeout": f"{seconds:.3f}"}
    answer = httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)
    content = answer.json()
    retry_after = answer.headers.get("Retry-After")
    message = content["error"]["message"] if "error" in content else content["message"]
    return Refusal(answer.status_code, message, float(retry_after) if retry_after else None)


def rest(server: Server, seconds: float | None, fields: dict[str, Any]) -> Refusal:
    return over_http(server, seconds, "/generate", {"text": "a cat", **fields})


def openai(server: Server, seconds: float | None, fields: dict[str, Any]) -> Refusal:
    return over_http(server, seconds, "/v1/images/generations", {"prompt": "a cat", **fields})


def openai_stream(server: Server, seconds: float | None, fields: dict[str, Any]) -> Refusal:
    return openai(server, seconds, {**fields, "stream": True})


def first_contract(server: Server, seconds: float | None, fields: dict[str, Any]) -> Refusal:
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(
            GENERATE_IMAGE,
            request_serializer=pb.ImageRequest.SerializeToString,
            response_deserializer=pb.ImageResponse.FromString,
        )
        answer = call(pb.ImageRequest(text="a cat", **fields), timeout=seconds)
    retry_after = answer.retry_after if answer.HasField("retry_after") else None
    return Refusal(answer.status_code, answer.message, retry_after)


def v1(server: Server, seconds: float | None, fields: dict[str, Any]) -> Refusal:
    with server.client() as client, pytest.raises(Text2ImageError) as raised:
        client.generate("a cat", timeout=seconds, **fields)
    return Refusal(raised.value.http_status, raised.value.message, raised.value.retry_after)


def counters(server: Server) -> Counters:
    with server.engine() as engine:
        return engine.status().counters


TRANSPORTS: list[Ask] = [rest, openai, openai_stream, first_contract, v1]
every_transport = pytest.mark.parametrize("ask", TRANSPORTS, ids=lambda ask: ask.__name__)


@pytest.fixture(scope="module")
def alone(server: Server) -> float:
    """Seconds that the work takes on an idle server, as it predicts them."""
    server.wait_for(is_idle, "the engine is idle")
    with server.client() as client:
        events = client.stream("a cat", timeout=LONGEST_NAMED_TIMEOUT, **FIELDS)
        queued = next(events)
        events.close()
    assert isinstance(queued, Queued)
    return queued.predicted_seconds


@every_transport
@pytest.mark.parametrize("seed", [None, 21], ids=["any seed", "one seed"])
def test_what_even_an_idle_server_cannot_do_in_time_is_refused_before_any_work(
    server: Server, alone: float, ask: Ask, seed: int | None
) -> None:
    before = server.wait_for(is_idle, "the engine is idle").counters
    refusal = ask(server, alone / 8, FIELDS if seed is None else {**FIELDS, "seed": seed})
    after = server.wait_for(is_idle, "the engine is idle").counters
    assert refusal.status == 504
    assert "on an idle server and the deadline is in" in refusal.message
    assert refusal.retry_after is None, "waiting would not help"
    assert after.refused == before.refused + 1
    assert after.admitted == before.admitted
    assert after.sample_steps == before.sample_steps


def test_what_the_load_keeps_from_being_done_in_time_is_refused_with_a_delay(
    server: Server, client: Client, alone: float
) -> None:
    server.wait_for(is_idle, "the engine is idle")
    load = client.stream("a dog", timeout=LONGEST_NAMED_TIMEOUT, n=8, steps=LONG)
    with closing(load):
        assert isinstance(next(load), Queued)
        before, told = counters(server), server.metric(REFUSED)
        for ask in TRANSPORTS:
            refusal = ask(server, 1.5 * alone, FIELDS)
            assert refusal.status == 503, ask
            assert refusal.retry_after
            assert "full" in refusal.message
        after = counters(server)
        # The gateway refuses by itself what its runner has just refused.
        assert server.metric(REFUSED) == told + len(TRANSPORTS)
        assert before.refused < after.refused <= before.refused + len(TRANSPORTS)
        assert after.admitted == before.admitted


def test_who_names_no_deadline_has_the_servers_own(
    server: Server, start_server: Callable[..., Server]
) -> None:
    before = server.wait_for(is_idle, "the engine is idle").counters
    hurried = start_server(engine_of=server, T2I_REQUEST_TIMEOUT="1")
    for ask in TRANSPORTS:
        n = {} if ask is openai_stream else {"n": 8}
        refusal = ask(hurried, None, {**FIELDS, **n})
        assert refusal.status == 504, ask
        assert "the deadline is in 1.0 s" in refusal.message
    assert counters(server).sample_steps == before.sample_steps
