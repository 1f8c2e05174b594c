"""What is said of a runner that is out of reach: one that ended starts again, one that hangs does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.unit.gateway.scripted import ScriptedRunner
from text2image.gateway import runner_link
from text2image.gateway.runner_link import RunnerLink
from text2image.messages import State

# A connection's first words in HTTP/2: a frame of settings, without any.
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@asynccontextmanager
async def linked(
    socket: Path,
) -> AsyncIterator[tuple[RunnerLink, Callable[[State], Awaitable[None]]]]:
    """A link, and what waits until it says a state."""
    changed = asyncio.Event()
    link = RunnerLink("runner 0", f"unix:{socket}", changed.set)

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
    async with linked(runner.socket) as (link, until):
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
    async with await asyncio.start_unix_server(hang, socket), linked(socket) as (link, until):
        await until(State.FAILED)
        assert link.status.detail == "does not answer"
