"""Two servers on one machine have nothing to do with each other, and no stranger has to do with either."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.harness import Server, eventually, free_port, serving

# A second server must not need a machine of its own.
SMALL = {"T2I_THREADS": "1", "T2I_CACHE_BYTES": "0"}
COUNTED = 'text2image_requests_total{code="OK",transport="rest"}'
ADMITTED = "text2image_engine_admitted_total"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two servers of one user with the same ports on two addresses, and no folder named; the second starts later."""
    folder = tmp_path_factory.mktemp("pair")
    ports = {"http_port": free_port(), "grpc_port": free_port()}
    shared = {"BENTOML_HOME": str(folder / "bentoml"), "T2I_RUNTIME_DIR": "", **SMALL}
    with ExitStack() as servers:
        first = servers.enter_context(
            serving(Server(folder / "first", host="127.0.0.1", **ports, **shared))
        )
        draw(first)
        yield (
            first,
            servers.enter_context(
                serving(Server(folder / "second", host="127.0.0.2", **ports, **shared))
            ),
        )


def draw(server: Server) -> None:
    body = {"text": "a red fox", "steps": 2}
    assert httpx.post(f"{server.url}/generate", json=body, timeout=120).status_code == 200


def test_both_go_on_counting(pair: tuple[Server, Server]) -> None:
    """What the gateway has counted, and what the runner has."""
    first, second = pair
    for counter in (COUNTED, ADMITTED):
        eventually(lambda counter=counter: counts(pair, counter) == [1, 0], counter)
    draw(second)
    draw(second)
    draw(first)
    for counter in (COUNTED, ADMITTED):
        eventually(lambda counter=counter: counts(pair, counter) == [2, 2], counter)


def counts(servers: tuple[Server, Server], counter: str) -> list[float]:
    return [server.metric(counter) for server in servers]


def test_each_draws_with_its_own_runner(pair: tuple[Server, Server]) -> None:
    sockets = []
    for server in pair:
        (runner,) = server.runners()
        (own,) = {path for path in sockets_of(runner) if path.name == "runner-0.sock"}
        sockets.append(own)
        assert own.is_socket()
    assert sockets[0] != sockets[1]


def test_a_server_listens_where_it_is_told_to_and_nowhere_else(pair: tuple[Server, Server]) -> None:
    """Every port that any of its processes has opened, and every socket, which nobody else can reach."""
    for server, host in zip(pair, ("127.0.0.1", "127.0.0.2"), strict=True):
        assert server.listening() == {(host, server.http_port), (host, server.grpc_port)}
        for process in server.processes():
            for path in sockets_of(process):
                assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, path


def test_the_runners_http_draws_for_nobody(pair: tuple[Server, Server]) -> None:
    """BentoML opens a socket for it, at which the gateway would find it if it asked there."""
    (runner,) = pair[0].runners()
    (path,) = {path for path in sockets_of(runner) if "bentoml-uds" in str(path)}
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://localhost/readyz").status_code == 200
        body = {"requests": [{"text": "a fox", "steps": 2}]}
        assert client.post("http://localhost/generate", json=body).status_code == 403


def sockets_of(process: psutil.Process) -> list[Path]:
    """The sockets with a path that a process has open."""
    found = process.net_connections("unix")
    return [Path(each.laddr) for each in found if str(each.laddr).startswith("/")]
