"""The harness keeps its word, so that a failing test is about the server."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.harness import PortTaken, Server, serving


@contextmanager
def stranger() -> Iterator[int]:
    """A port that another process holds, and where nobody listens, so that nobody waits for an answer."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def test_a_server_whose_chosen_port_is_taken_starts_on_another(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = harness.free_port
    with stranger() as taken:
        ports = [taken, choose(), choose(), choose()]
        monkeypatch.setattr(harness, "free_port", lambda: ports.pop(0))
        with serving(Server(tmp_path, engine_of=server)) as another:
            assert another.http_port != taken
        assert not ports


def test_a_server_whose_named_ports_are_taken_is_not_tried_again(tmp_path: Path) -> None:
    with stranger() as taken:
        server = Server(tmp_path, http_port=taken, grpc_port=harness.free_port())
        with pytest.raises(PortTaken, match=str(taken)):
            server.start_until_ready()
