"""What is said of a runner that is out of reach: one that ended starts again, one that hangs does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trustme

from tests.certificates import Files
from tests.e2e.harness import free_port
from tests.unit.gateway.scripted import ScriptedRunner
from text2image.core.messages import State
from text2image.gateway import runner_link
from text2image.gateway.runner_link import RunnerLink
from text2image.net.tls import Tls

# A connection's first words in HTTP/2: a frame of settings, without any.
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


class SecureRunner(ScriptedRunner):
    """One on TCP, which shows a certificate and asks for one."""

    def __init__(self, folder: Path, tls: Tls) -> None:
        super().__init__(folder / "unused")
        self._tls = tls
        self._port = free_port()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def _listen(self, server: grpc.aio.Server) -> None:
        assert server.add_secure_port(self.address, self._tls.grpc_credentials())


@asynccontextmanager
async def linked(
    address: str, tls: Tls | None = None, host: str = ""
) -> AsyncIterator[tuple[RunnerLink, Callable[[State], Awaitable[None]]]]:
    """A link, and what waits until it says a state."""
    changed = asyncio.Event()
    link = RunnerLink("runner 0", address, changed.set, tls=tls, host=host)

    async def until(state: State) -> None:
        async with asyncio.timeout(30):
            while link.status.state is not state:
                changed.clear()
                await changed.wait()

    link.start()
    yield link, until
    await link.close()


async def test_a_runner_that_ends_is_said_to_start(tmp_path: Path) -> None:
    runner = ScriptedRunner(tmp_path / "0")
    await runner.start()
    async with linked(runner.address) as (link, until):
        await until(State.READY)
        await runner.die()
        await until(State.LOADING)
        assert not link.is_ready


async def test_a_runner_that_answers_no_ping_is_said_not_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = dict.fromkeys(("grpc.keepalive_time_ms", "grpc.http2.ping_timeout_ms"), 200)
    options = {**dict(runner_link._CHANNEL_OPTIONS), **quick}
    monkeypatch.setattr(runner_link, "_CHANNEL_OPTIONS", list(options.items()))

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SETTINGS)
        await reader.read()
        writer.close()

    socket = tmp_path / "0"
    async with (
        await asyncio.start_unix_server(hang, socket),
        linked(f"unix:{socket}") as (link, until),
    ):
        await until(State.FAILED)
        assert link.status.detail == "does not answer"


@pytest.mark.parametrize("host", ["", "localhost"], ids=["by address", "by name"])
async def test_both_sides_show_certificates_and_follow_renewed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(runner_link, "REACH_PAUSE", 0.05)
    files = Files(tmp_path)
    tls = Tls(files.certificate, files.key, files.ca)
    runner = SecureRunner(tmp_path, tls)
    await runner.start()
    async with linked(runner.address, tls, host) as (_, until):
        await until(State.READY)
        # Another authority: neither side takes what the other has shown so far.
        files.issue(trustme.CA())
        await runner.restart()
        await until(State.FAILED)
        await until(State.READY)
    await runner.die()


async def test_a_runner_with_a_certificate_of_strangers_gets_no_work_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, other = Files(tmp_path / "own"), Files(tmp_path / "other")
    runner = SecureRunner(tmp_path, Tls(other.certificate, other.key, other.ca))
    await runner.start()
    async with linked(runner.address, Tls(own.certificate, own.key, own.ca)) as (link, until):
        await until(State.FAILED)
        assert not link.is_ready
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
    await runner.die()
