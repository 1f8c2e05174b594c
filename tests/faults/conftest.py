"""Faults are injected into real servers. What a client sees is asserted; how long it takes is told, since it is the
machine's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.e2e.harness import Server, serving
from tests.faults.disks import small_disk
from tests.faults.models import poisoned_model
from tests.faults.normality import Normality
from tests.faults.times import TIMES

# A thread for each runner, since they share their cores with the tests; no picture comes from an earlier test.
ALONE = {"T2I_THREADS": "1", "T2I_CACHE_BYTES": "0"}
# Pixels; a picture of this side takes more memory than lies about in a process.
LARGEST = 1024
# Room for a few pictures.
DISK_MEGABYTES = 16
Timed = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def timed(record_property: Callable[[str, object], None]) -> Timed:
    """Takes down how long a block took."""

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        record_property(TIMES, (what, time.monotonic() - began))

    return timed


@pytest.fixture(scope="package")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Normality]:
    """A server with two processes of each kind, and room for hundreds of requests."""
    settings = {
        **ALONE,
        "T2I_MAX_SIDE": "512",
        "T2I_RUNNER_WORKERS": "2",
        "T2I_GATEWAY_WORKERS": "2",
        "T2I_MAX_BACKLOG_SECONDS": "36000",
        "T2I_REQUEST_TIMEOUT": "36000",
    }
    with serving(Server(tmp_path_factory.mktemp("pairs"), **settings)) as server:
        yield Normality(server, runners=2, gateways=2)


@pytest.fixture(scope="package")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Normality]:
    """A server whose model knows a poisonous word, and whose pictures lie on a small disk where we may mount one."""
    model = poisoned_model(tmp_path_factory.mktemp("poisoned") / "model")
    folder = tmp_path_factory.mktemp("fragile")
    # OpenVINO takes nothing up again before there is memory again, and this one is drawn with while there is none.
    settings = {"T2I_MODEL": str(model), "T2I_MAX_SIDE": str(LARGEST), "T2I_RUNTIME": "torch"}
    server = Server(folder, **settings, **ALONE)
    server.pictures.mkdir()
    with small_disk(server.pictures, DISK_MEGABYTES), serving(server):
        yield Normality(server)
