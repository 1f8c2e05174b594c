"""Beginnings and ends: taken ports, runners that die, and servers that are told to go."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.harness import Server, eventually
from tests.e2e.test_bad_input import call_seed
from tests.e2e.test_cancellation import is_idle
from tests.e2e.test_pictures import assert_same, image_of
from text2image.client import Client
from text2image.core.errors import Unavailable
from text2image.core.messages import Picture, Progress
from text2image.net import text2image_pb2 as pb

# Long enough for all that is looked at while pictures are drawn.
LONG = 100


@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
def test_a_taken_port_is_one_clear_line_and_an_error_at_once(tmp_path: Path, protocol: str) -> None:
    with socket.socket() as stranger:
        # A stranger that would even share its port must not get half of our requests.
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        taken = Server(tmp_path, **{f"{protocol.lower()}_port": port})
        taken.start()
        assert taken.wait() != 0
    lines = taken.log.strip().splitlines()
    assert len(lines) == 1
    assert f"{protocol} on 127.0.0.1:{port}" in lines[0]
    assert "already in use" in lines[0]


def test_a_runner_killed_in_the_middle_costs_time_and_no_picture_and_new_ones_are_refused_at_once(
    server: Server, client: Client
) -> None:
    expected = client.generate("a red fox", steps=LONG, seed=4)[0]
    resends = server.metric("text2image_resends_total")
    runner = server.runner()
    with ThreadPoolExecutor() as pool:
        body = {"text": "a red fox", "steps": LONG, "seed": 4}
        rest = pool.submit(httpx.post, f"{server.url}/generate", json=body, timeout=300)
        events = client.stream("a red fox", steps=LONG, seed=4)
        assert any(isinstance(event, Progress) for event in events)
        server.wait_for(lambda status: status.active == 2, "both are in flight")
        runner.kill()
        eventually(lambda: not server.is_ready(), "the loss is noticed")
        assert_refuses_for_want_of_a_runner(server)
        pictures = [event for event in events if isinstance(event, Picture)]
        assert len(pictures) == 1
        assert_same(image_of(pictures[0].png), image_of(expected.png))
        assert rest.result().status_code == 200
        assert_same(image_of(rest.result().json()["image_base64"]), image_of(expected.png))
    assert server.runner().pid != runner.pid
    assert server.metric("text2image_resends_total") == resends + 2
    eventually(lambda: server.metric("text2image_runners_ready") == 1, "the dead do not count")
    assert client.generate("a cat", steps=2)


def assert_refuses_for_want_of_a_runner(server: Server) -> None:
    assert httpx.get(f"{server.url}/readyz").status_code == 503
    answer = httpx.post(f"{server.url}/generate", json={"text": "a cat"})
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    with server.client() as client, pytest.raises(Unavailable) as refused:
        client.generate("a cat")
    assert refused.value.retry_after
    assert httpx.post(f"{server.url}/generate", json={"text": ""}).status_code == 400


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_admitted_is_finished_and_nothing_else(
    start_server: Callable[..., Server], number: signal.Signals
) -> None:
    server = start_server(T2I_GATEWAY_WORKERS="2")
    with ThreadPoolExecutor() as pool, server.client() as client:
        body = {"text": "a cat", "steps": LONG}
        rest = pool.submit(httpx.post, f"{server.url}/generate", json=body, timeout=300)
        v1 = pool.submit(client.generate, "a cat", steps=LONG)
        message = pb.ImageRequest(text="a cat", steps=LONG).SerializeToString()
        seed = pool.submit(call_seed, server, message)
        server.wait_for(lambda status: status.active == 3, "all three are in flight")
        server.terminate(number)
        eventually(lambda: not server.is_ready(), "the server drains")
        assert_refuses_everything(server)
        assert rest.result().status_code == 200
        assert len(v1.result()) == 1
        assert seed.result().status_code == 200
    assert server.wait() == 0


def assert_refuses_everything(server: Server) -> None:
    answer = httpx.post(f"{server.url}/generate", json={"text": "a cat"})
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    with server.client() as client, pytest.raises(Unavailable) as refused:
        client.generate("a cat")
    assert refused.value.reason == Unavailable.DRAINING
    assert refused.value.retry_after
    seed = call_seed(server, pb.ImageRequest(text="a cat").SerializeToString())
    assert seed.status_code == 503
    assert seed.retry_after > 0
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        health = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_draining_is_bounded(server: Server, start_server: Callable[..., Server]) -> None:
    server.wait_for(is_idle, "nobody else is drawn for")
    hasty = start_server(engine_of=server, T2I_DRAIN_TIMEOUT="0.1")
    outcomes: list[object] = []

    def work() -> None:
        with hasty.client() as client:
            try:
                outcomes.append(client.generate("a cat", steps=LONG))
            except Unavailable as error:
                outcomes.append(error.reason)

    client = threading.Thread(target=work)
    client.start()
    server.wait_for(lambda status: status.active == 1, "the work is in flight")
    hasty.terminate()
    client.join()
    assert outcomes == [Unavailable.DRAINING]
    assert hasty.wait() == 0


def test_a_request_that_never_ends_does_not_hold_the_server(
    server: Server, start_server: Callable[..., Server]
) -> None:
    """Its client has sent half of it, and stays."""
    ending = start_server(engine_of=server)
    head = (
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 50\r\n\r\n{"
    )
    with socket.create_connection(("127.0.0.1", ending.http_port)) as connection:
        connection.sendall(head)
        ending.terminate()
        assert ending.wait() == 0
