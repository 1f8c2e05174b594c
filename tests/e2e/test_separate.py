"""A gateway and a runner that are started apart, as on two machines, and speak over TCP with mutual TLS."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

import bentoml
import httpx
import psutil
import pytest

from tests.certificates import Files
from tests.e2e.harness import Server, eventually, free_port, serving
from tests.e2e.test_pictures import assert_same, image_of
from text2image.client import Client
from text2image.core.errors import Unavailable
from text2image.core.keys import ApiKey, KeysFile, Scope, hash_of

ADMIN, DRAWER = "t2i_" + "admin" * 6, "t2i_" + "drawer" * 6


@dataclass
class Pair:
    """Two servers, and the files that vouch for them."""

    gateway: Server
    runner: Server
    port: int
    files: Files


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The runner draws over its own HTTP port for those who own a key."""
    folder = tmp_path_factory.mktemp("pair")
    files, port = Files(folder / "certificates"), free_port()
    keys = KeysFile(folder / "keys.json")
    for name, key, scopes in (
        ("admin", ADMIN, (Scope.ADMIN, Scope.GENERATE)),
        ("drawer", DRAWER, (Scope.GENERATE,)),
    ):
        keys.add(ApiKey(name=name, sha256=hash_of(key), created=datetime.now(UTC), scopes=scopes))
    tls = {
        "T2I_RUNNER_TLS_CERT": str(files.certificate),
        "T2I_RUNNER_TLS_KEY": str(files.key),
        "T2I_RUNNER_TLS_CA": str(files.ca),
    }
    runner = Server(
        folder / "runner",
        "Runner",
        T2I_RUNNER_LISTEN=f"127.0.0.1:{port}",
        T2I_KEYS_FILE=str(keys.path),
        **tls,
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


def test_the_runner_tells_its_backlog_to_whoever_may_watch_it(pair: Pair) -> None:
    watcher = {"Authorization": f"Bearer {ADMIN}"}
    told = httpx.get(f"{pair.runner.url}/metrics", headers=watcher).text
    assert re.search(r"^text2image_backlog_seconds\b.* \d", told, re.MULTILINE)


def test_the_runner_draws_over_http_for_keys_that_administer_alone(pair: Pair) -> None:
    """And it listens where its gateways come and on its HTTP port, and nowhere else."""
    runner = pair.runner
    assert runner.listening() == {("127.0.0.1", runner.http_port), ("127.0.0.1", pair.port)}
    url, drawer = f"{runner.url}/generate", {"Authorization": f"Bearer {DRAWER}"}
    body = {"requests": [{"text": "a fox", "steps": 2}]}
    assert httpx.post(url, json=body).status_code == 401
    assert httpx.post(url, json=body, headers=drawer).status_code == 403
    assert httpx.get(f"{runner.url}/metrics").status_code == 401


def test_bentomls_own_clients_get_adaptive_batching_as_bentoml_documents_it(pair: Pair) -> None:
    items = [{"text": "a fox", "seed": 3, "steps": steps} for steps in (2, 4, 0)]
    with (
        bentoml.SyncHTTPClient(pair.runner.url, token=ADMIN) as client,
        ThreadPoolExecutor() as pool,
    ):
        alone = client.generate(requests=items[:1])
        calls = [pool.submit(client.generate, requests=[item]) for item in items]
        answers = [call.result()[0] for call in calls]
    assert [answer["status_code"] for answer in answers] == [200, 200, 400]
    assert answers[2]["violations"][0]["field"] == "steps"
    first, again = alone[0]["image_base64"], answers[0]["image_base64"]
    assert_same(image_of(first), image_of(again))


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
