"""Gateway processes that are killed or hang: their own connections suffer, and nobody else's."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import grpc
import psutil
import pytest
from PIL.Image import Image

from tests.e2e.harness import Server, eventually
from tests.e2e.test_pictures import assert_same, image_of
from tests.faults.asking import LONG, PATIENCE, draw, is_idle
from tests.faults.conftest import Timed
from tests.faults.normality import Normality
from tests.faults.processes import busy, stopped
from text2image.core.messages import Picture
from text2image.net import wire
from text2image.v1 import image_generation_pb2 as pb

SEEDS = range(40, 46)


@dataclass(frozen=True)
class Asked:
    """A request in flight, and the port that its connection comes from."""

    seed: int
    port: int
    picture: Future[Image]


@contextmanager
def asked(server: Server, pool: ThreadPoolExecutor) -> Iterator[list[Asked]]:
    """A request of each seed on a connection of its own, over HTTP and gRPC in turn; all are in flight."""
    with ExitStack() as connections:
        ways = (over_http, over_grpc)
        requests = [ways[seed % 2](server, pool, connections, seed) for seed in SEEDS]
        busy(server, [request.picture for request in requests])
        yield requests


def over_http(server: Server, pool: ThreadPoolExecutor, connections: ExitStack, seed: int) -> Asked:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE)
    connections.callback(connection.close)
    connection.connect()
    port = connection.sock.getsockname()[1]

    def answer() -> Image:
        body = json.dumps({"text": "a red fox", "steps": LONG, "seed": seed})
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        return image_of(json.load(response)["image_base64"])

    return Asked(seed, port, pool.submit(answer))


def over_grpc(server: Server, pool: ThreadPoolExecutor, connections: ExitStack, seed: int) -> Asked:
    others = ports_to(server)
    # Channels that are told the same share one connection.
    options = [("grpc.primary_user_agent", str(seed))]
    channel = connections.enter_context(grpc.insecure_channel(server.address, options))
    grpc.channel_ready_future(channel).result(PATIENCE)
    (port,) = ports_to(server) - others

    def answer() -> Image:
        request = pb.GenerateRequest(prompt="a red fox", steps=LONG, seed=seed)
        call = wire.stub(channel).Generate(request, timeout=PATIENCE)
        events = [wire.client_event_from(message) for message in call]
        (picture,) = (event for event in events if isinstance(event, Picture))
        return image_of(picture.png)

    return Asked(seed, port, pool.submit(answer))


def ports_to(server: Server) -> set[int]:
    """Our ports of the open connections to the server's gRPC."""
    return {
        connection.laddr.port
        for connection in psutil.Process().net_connections("tcp")
        if connection.raddr and connection.raddr.port == server.grpc_port
    }


def clients_of(gateway: psutil.Process) -> set[int]:
    """The ports of those that are connected to a process."""
    return {
        connection.raddr.port for connection in gateway.net_connections("tcp") if connection.raddr
    }


def holder(server: Server, request: Asked) -> psutil.Process:
    """The gateway that a request has gone to."""
    (found,) = (gateway for gateway in server.gateways() if request.port in clients_of(gateway))
    return found


def test_a_killed_gateway_process_breaks_its_own_connections_and_no_others(
    pairs: Normality, timed: Timed
) -> None:
    server = pairs.server
    with ThreadPoolExecutor(len(SEEDS)) as pool, asked(server, pool) as requests:
        victim = holder(server, requests[0])
        lost = clients_of(victim)
        with timed("gateway process killed: back to normal"):
            victim.kill()
            kept = []
            for request in requests:
                if request.port in lost:
                    with pytest.raises((ConnectionError, http.client.HTTPException, grpc.RpcError)):
                        request.picture.result()
                else:
                    kept.append(request)
                    request.picture.result()
            eventually(lambda: len(server.gateways()) == 2, "another one is started")
            pairs.returns()
    for runner in (0, 1):
        server.wait_for(is_idle, "what nobody waits for is given up", runner)
    for request in kept[:1]:
        assert_same(draw(server, request.seed, steps=LONG), request.picture.result())


def test_a_hung_gateway_process_answers_late_and_others_are_served_by_the_rest(
    pairs: Normality, timed: Timed
) -> None:
    server = pairs.server
    with ThreadPoolExecutor(len(SEEDS)) as pool, asked(server, pool) as requests:
        hung = holder(server, requests[0])
        with stopped(hung):
            for seed in range(50, 55):
                draw(server, seed, steps=1)
            for request in requests:
                if request.port not in clients_of(hung):
                    request.picture.result()
        with timed("gateway process hung and goes on: back to normal"):
            for request in requests:
                request.picture.result()
            pairs.returns()
    assert_same(draw(server, requests[0].seed, steps=LONG), requests[0].picture.result())
