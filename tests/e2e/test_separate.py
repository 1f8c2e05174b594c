"""A gateway and a runner that are started apart, as on two machines, and speak over TCP with mutual TLS."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import psutil
import pytest

from tests.certificates import Files
from tests.e2e.harness import Server, eventually, free_port, serving
from tests.e2e.test_pictures import assert_same, image_of
from text2image.client import Client
from text2image.core.errors import Unavailable


@dataclass
class Pair:
    """Two servers, and the files that vouch for them."""

    gateway: Server
    runner: Server
    port: int
    files: Files


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    files, port = Files(folder / "certificates"), free_port()
    tls = {
        "T2I_RUNNER_TLS_CERT": str(files.certificate),
        "T2I_RUNNER_TLS_KEY": str(files.key),
        "T2I_RUNNER_TLS_CA": str(files.ca),
    }
    runner = Server(
        folder / "runner", "Runner", T2I_RUNNER_LISTEN=f"127.0.0.1:{port}", T2I_THREADS="1", **tls
    )
    # The name has other addresses too, at which nobody listens.
    gateway = Server(folder / "gateway", T2I_RUNNERS=f"dns:///localhost:{port}", **tls)
    with ExitStack() as servers:
        runner.start()
        servers.callback(runner.stop)
        servers.enter_context(serving(gateway))
        yield Pair(gateway, runner, port, files)


def draw(server: Server) -> bytes:
    with server.client() as client:
        return client.generate("a red fox", seed=11, steps=8)[0].png


def test_they_draw_what_one_server_draws(pair: Pair, server: Server) -> None:
    assert_same(image_of(draw(pair.gateway)), image_of(draw(server)))


def test_the_gateway_starts_no_runner_and_has_no_torch(pair: Pair) -> None:
    assert pair.gateway.runners() == []
    (process,) = pair.gateway.gateways()
    assert not [each.path for each in process.memory_maps() if "torch" in each.path]
    assert f"localhost:{pair.port}" in pair.gateway.log


def test_the_runner_tells_its_backlog_to_whoever_watches_it(pair: Pair) -> None:
    told = httpx.get(f"{pair.runner.url}/metrics").text
    assert re.search(r"^text2image_backlog_seconds\b.* \d", told, re.MULTILINE)


def test_a_runner_takes_nothing_from_whoever_shows_no_certificate(pair: Pair) -> None:
    address, own = f"localhost:{pair.port}", (pair.files.certificate, pair.files.key)
    with Client(address, ca=pair.files.ca, certificate=own) as gateway:
        assert gateway.model().id == "embedded"
    for strangers in (Client(address, ca=False), Client(address, ca=pair.files.ca)):
        with strangers as stranger, pytest.raises(Unavailable):
            stranger.model()


def test_workers_end_with_a_supervisor_that_was_killed(pair: Pair) -> None:
    workers = [*pair.gateway.gateways()]
    pair.gateway.process.kill()
    eventually(lambda: not any(map(_runs, workers)), "the workers are gone")
    pair.gateway.start_until_ready()


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
