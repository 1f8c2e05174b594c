"""Nobody waits any more: the engine stops the work, as its own counters say."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable

import grpc
import httpx
import pytest

from tests.e2e.harness import Server
from tests.e2e.test_bad_input import GENERATE_IMAGE
from tests.e2e.test_pictures import assert_same, image_of
from text2image.client import Client
from text2image.core.errors import DeadlineExceeded
from text2image.core.messages import Picture, Progress, Queued, State, Status
from text2image.net import text2image_pb2 as pb

LONG = 150


@pytest.fixture
def idle(server: Server) -> Status:
    """The status before: nothing in flight."""
    return server.wait_for(is_idle, "the engine is idle")


def is_idle(status: Status) -> bool:
    ended = status.counters.completed + status.counters.failed + status.counters.cancelled
    return status.state is State.READY and status.counters.admitted == ended


def stopped(server: Server, before: Status) -> None:
    """Waits for the one request since `before` to be cancelled, and checks that its steps were saved."""
    after = server.wait_for(
        lambda status: (
            status.counters.cancelled == before.counters.cancelled + 1 and not status.active
        ),
        "the work is cancelled",
    )
    taken = after.counters.sample_steps - before.counters.sample_steps
    saved = after.counters.steps_saved - before.counters.steps_saved
    assert taken + saved == LONG
    assert saved > 0
    assert after.counters.completed == before.counters.completed


def stepping(before: Status) -> Callable[[Status], bool]:
    return lambda status: status.counters.sample_steps > before.counters.sample_steps


def test_an_http_client_that_leaves_stops_the_work(server: Server, idle: Status) -> None:
    body = json.dumps({"text": "a cat", "steps": LONG}).encode()
    head = (
        "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.http_port)) as connection:
        connection.sendall(head.encode() + body)
        server.wait_for(stepping(idle), "the work has begun")
    stopped(server, idle)


def test_a_reader_that_leaves_an_event_stream_stops_the_work(server: Server, idle: Status) -> None:
    body = {"prompt": "a cat", "steps": LONG, "stream": True, "partial_images": 3}
    url = f"{server.url}/v1/images/generations"
    with httpx.stream("POST", url, json=body, timeout=60) as answer:
        assert answer.status_code == 200
        next(answer.iter_lines())
    stopped(server, idle)


def test_a_cancelled_rpc_stops_the_work(server: Server, client: Client, idle: Status) -> None:
    events = client.stream("a cat", steps=LONG)
    assert any(isinstance(event, Progress) for event in events)
    events.close()
    stopped(server, idle)


def test_a_cancelled_rpc_of_the_first_contract_stops_the_work(server: Server, idle: Status) -> None:
    with grpc.insecure_channel(server.address) as channel:
        generate = channel.unary_unary(
            GENERATE_IMAGE,
            request_serializer=pb.ImageRequest.SerializeToString,
            response_deserializer=pb.ImageResponse.FromString,
        )
        call = generate.future(pb.ImageRequest(text="a cat", steps=LONG))
        server.wait_for(stepping(idle), "the work has begun")
        call.cancel()
    stopped(server, idle)


def test_a_deadline_that_passes_stops_the_work(
    server: Server, client: Client, idle: Status
) -> None:
    """The runner is held up in the middle of a request, so that it cannot keep a deadline that it could promise."""
    asked = client.stream("a cat", steps=LONG)
    queued = next(asked)
    asked.close()
    assert isinstance(queued, Queued)
    before = server.wait_for(is_idle, "the engine is idle again")
    events = client.stream("a cat", steps=LONG, timeout=1 + 2 * queued.predicted_seconds)
    runner = server.runner()
    assert any(isinstance(event, Progress) for event in events)
    runner.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineExceeded):
            list(events)
    finally:
        runner.send_signal(signal.SIGCONT)
    stopped(server, before)


def test_a_deadline_that_cannot_be_kept_is_refused_at_once(server: Server, idle: Status) -> None:
    answer = httpx.post(
        f"{server.url}/generate",
        json={"text": "a cat", "steps": LONG},
        headers={"X-Request-Timeout": "0.05"},
    )
    assert answer.status_code == answer.json()["status_code"] == 504


def test_one_that_leaves_does_not_disturb_its_neighbour(
    server: Server, client: Client, idle: Status
) -> None:
    alone = client.generate("a fox", steps=10, seed=3)[0]
    leaving = client.stream("a cat", steps=LONG)
    assert any(isinstance(event, Progress) for event in leaving)
    staying = client.stream("a fox", steps=10, seed=3)
    first = next(event for event in staying if isinstance(event, Progress))
    assert first.step < first.steps
    leaving.close()
    (together,) = (event for event in staying if isinstance(event, Picture))
    assert_same(image_of(alone.png), image_of(together.png))
    server.wait_for(
        lambda status: status.counters.cancelled == idle.counters.cancelled + 1,
        "the other one was still in flight",
    )
