"""Clients that vanish, read slowly or never finish what they say: the others notice nothing."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from tests.e2e.harness import Server, eventually
from tests.e2e.test_pictures import assert_same, image_of
from tests.faults.asking import LONGEST, PATIENCE, draw, draw_by_grpc, is_idle, post
from tests.faults.conftest import Timed
from tests.faults.normality import Normality
from text2image.core.messages import Counters, Picture
from text2image.net import wire
from text2image.v1 import image_generation_pb2 as pb

CROWD = 100
# A stream of more than what is on its way between a server and a client that does not read.
LARGE = {"steps": 1, "guidance_scale": 0.0, "width": 256, "height": 256, "n": 8}
HEAD = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
HALF_SENT = HEAD.format(50).encode() + b'{"text": '


@pytest.fixture(scope="module", autouse=True)
def half_sent(pairs: Normality) -> Iterator[socket.socket]:
    """A client that says the first half of a request, and stays while the other tests run."""
    with connect(pairs.server.http_port) as client:
        client.sendall(HALF_SENT)
        yield client


def connect(port: int, receive_buffer: int = 0) -> socket.socket:
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", port))
    return client


def send(client: socket.socket, body: dict[str, object]) -> None:
    data = json.dumps(body).encode()
    client.sendall(HEAD.format(len(data)).encode() + data)


def received(client: socket.socket, most: int) -> bytes:
    data = client.recv(most)
    assert data, "the server closed the connection in the middle of its answer"
    return data


def read(client: socket.socket, begun: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Status and body of an answer of which so much was read before; a byte at a time to the end of its head."""
    head = begun
    while not head.endswith(b"\r\n\r\n"):
        head += received(client, 1)
    (length,) = re.findall(rb"content-length: (\d+)", head.lower())
    body = b""
    while len(body) < int(length):
        body += received(client, 4096)
    return int(head.split()[1]), json.loads(body)


def counted(server: Server) -> Counters:
    """What both runners have done, once they are idle."""
    both = [server.wait_for(is_idle, "the runners are idle", runner).counters for runner in (0, 1)]
    sums = {
        name: sum(getattr(counters, name) for counters in both)
        for name in Counters.__dataclass_fields__
    }
    return Counters(**sums)


def in_flight(server: Server) -> int:
    active = 0
    for runner in (0, 1):
        with server.engine(runner) as engine:
            active += engine.status().active
    return active


def test_nothing_is_computed_for_clients_that_vanish_by_the_hundred(
    pairs: Normality, timed: Timed
) -> None:
    server = pairs.server
    before = counted(server)
    with ExitStack() as crowd:
        channel = crowd.enter_context(grpc.insecure_channel(server.address))
        stub = wire.stub(channel)
        calls = []
        for seed in range(CROWD):
            client = crowd.enter_context(connect(server.http_port))
            send(client, {"text": "a cat", "steps": LONGEST, "seed": seed})
            request = pb.GenerateRequest(prompt="a dog", steps=LONGEST, seed=seed)
            calls.append(stub.Generate(request))
        eventually(lambda: in_flight(server) == 2 * CROWD, "all are in flight")
    with timed(f"{2 * CROWD} clients vanish: nothing is drawn for them any more"):
        after = counted(server)
    assert after.cancelled - before.cancelled == 2 * CROWD
    assert after.completed == before.completed
    draw(server, 60, steps=4)
    assert counted(server).sample_steps == after.sample_steps + 4
    pairs.returns()


def test_slow_readers_hold_nobody_up_and_get_all_in_the_end(pairs: Normality, timed: Timed) -> None:
    server = pairs.server
    with ExitStack() as stack:
        readers = [stack.enter_context(connect(server.http_port, 4096)) for _ in range(3)]
        for seed, reader in enumerate(readers):
            send(reader, {"text": "a cat", "seed": 100 * seed, **LARGE})
        client = stack.enter_context(server.client())
        streams = [client.stream("a cat", seed=70 + seed, **LARGE) for seed in range(2)]
        first = [
            next(event for event in stream if isinstance(event, Picture)) for stream in streams
        ]
        for reader in readers:
            assert reader.recv(1) == b"H"
        with timed("5 slow readers: another's request answered"):
            pairs.returns()
        eventually(lambda: in_flight(server) == 0, "the engines are done with them")
        for stream, picture in zip(streams, first, strict=True):
            rest = [event for event in stream if isinstance(event, Picture)]
            assert len({picture.index, *(event.index for event in rest)}) == LARGE["n"]
        alone = image_of(post(server, 0, "a cat", **LARGE).json()["images"][-1]["image_base64"])
        status, answer = read(readers[0], begun=b"H")
        assert status == 200
        assert_same(image_of(answer["images"][-1]["image_base64"]), alone)


def test_connections_that_say_nothing_or_half_a_request_hold_nobody_up(
    pairs: Normality, half_sent: socket.socket
) -> None:
    server = pairs.server
    with ExitStack() as stack:
        for port in (server.http_port, server.grpc_port) * CROWD:
            stack.enter_context(connect(port))
        draw(server, 80, steps=1)
        draw_by_grpc(server, 81, steps=1)
        status, answer = read(half_sent)
        assert status == 408
        assert "did not arrive" in answer["message"]
    pairs.returns()
