"""One server for all tests that leave it as they found it, and a way to start others."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e.harness import Server, serving
from text2image.client import Client

# Where clients that are told nothing look for the server.
KNOWN_HTTP_PORT, KNOWN_GRPC_PORT = 3000, 50051


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shared server. No request of any test may end in an internal error.

    It remembers no picture, so that what two tests ask for alike is drawn for each.
    """
    folder = tmp_path_factory.mktemp("server")
    ports = {
        "http_port": KNOWN_HTTP_PORT if _is_free(KNOWN_HTTP_PORT) else 0,
        "grpc_port": KNOWN_GRPC_PORT if _is_free(KNOWN_GRPC_PORT) else 0,
    }
    with serving(Server(folder, **ports, T2I_CACHE_BYTES="0")) as running:
        yield running
        metrics = httpx.get(f"{running.url}/metrics").text
    assert 'code="INTERNAL"' not in metrics, running.log


@pytest.fixture
def known_server(server: Server) -> Server:
    """The shared server, for clients whose addresses are written down."""
    ports = (server.http_port, server.grpc_port)
    assert ports == (KNOWN_HTTP_PORT, KNOWN_GRPC_PORT), "another process holds a default port"
    return server


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of the test's own, with settings as keywords."""
    with ExitStack() as servers:
        yield lambda **settings: servers.enter_context(serving(Server(tmp_path, **settings)))


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
