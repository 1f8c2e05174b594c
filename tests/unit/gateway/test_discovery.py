"""Runners behind a name come and go, and nobody's request is lost over it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.gateway.scripted import HANG, STORY, ScriptedRunner
from tests.unit.gateway.test_runners import collect, ready, until
from text2image.core.messages import State
from text2image.gateway import discovery
from text2image.gateway.runners import Runners
from text2image.observe.metrics import GatewayMetrics

FOLLOWED = "dns:///runners.internal:50061"


class Name:
    """What a name leads to, as the test says."""

    def __init__(self) -> None:
        self.behind: set[str] = set()
        self.fails = False
        self.looks = 0

    async def look_up(self, name: str, port: int) -> frozenset[str]:
        assert (name, port) == ("runners.internal", 50061)
        self.looks += 1
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "no resolver answers")
        return frozenset(self.behind)

    async def looked_up(self) -> None:
        """Returns when what it leads to now has been taken in."""
        enough = self.looks + 2
        async with asyncio.timeout(30):
            while self.looks < enough:
                await asyncio.sleep(0.01)


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> Name:
    name = Name()
    monkeypatch.setattr(discovery, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(discovery, "_look_up", name.look_up)
    return name


@pytest.fixture
async def runners(name: Name) -> AsyncIterator[Runners]:
    runners = Runners([FOLLOWED], 2, GatewayMetrics(CollectorRegistry()))
    runners.start()
    yield runners
    await runners.close()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[list[ScriptedRunner]]:
    """Two runners, not behind the name yet."""
    async with AsyncExitStack() as stack:
        pair = [ScriptedRunner(tmp_path / str(index)) for index in (0, 1)]
        for runner in pair:
            await runner.start()
            stack.push_async_callback(runner.die)
        yield pair


async def test_who_comes_to_the_name_gets_work(
    name: Name, pair: list[ScriptedRunner], runners: Runners
) -> None:
    name.behind.add(pair[0].address)
    await until(runners, lambda: runners.is_ready)
    await collect(runners)
    assert not pair[1].requests
    name.behind.add(pair[1].address)
    await until(runners, lambda: len(ready(runners)) == 2)
    await asyncio.gather(*(collect(runners) for _ in range(4)))
    assert pair[1].requests


async def test_who_leaves_the_name_finishes_what_it_has_and_is_forgotten_when_it_is_gone(
    name: Name, pair: list[ScriptedRunner], runners: Runners
) -> None:
    name.behind.update(runner.address for runner in pair)
    await until(runners, lambda: len(ready(runners)) == 2)
    for runner in pair:
        runner.play([STORY[0], HANG])
    asked = asyncio.create_task(collect(runners))
    async with asyncio.timeout(30):
        while not any(runner.requests for runner in pair):
            await asyncio.sleep(0.01)
    leaving, staying = sorted(pair, key=lambda runner: not runner.requests)
    name.behind.remove(leaving.address)
    await name.looked_up()
    assert not asked.done()
    assert not leaving.cancelled.is_set()
    staying.play(STORY)
    await leaving.die()
    events = await asked
    assert events[-1] == STORY[-1], "its connection broke, and another has drawn it"
    await name.looked_up()
    assert runners.status.detail == ""


async def test_a_name_that_cannot_be_looked_up_changes_nothing(
    name: Name, pair: list[ScriptedRunner], runners: Runners, caplog: pytest.LogCaptureFixture
) -> None:
    name.behind.update(runner.address for runner in pair)
    await until(runners, lambda: len(ready(runners)) == 2)
    name.fails = True
    await name.looked_up()
    assert len(ready(runners)) == 2
    assert caplog.text.count("no resolver answers") == 1
    assert await collect(runners) == list(STORY)


async def test_a_name_without_runners_is_waited_for(name: Name, runners: Runners) -> None:
    await name.looked_up()
    assert not runners.is_ready
    assert runners.status.state is State.LOADING


async def test_the_addresses_behind_a_name_are_those_that_the_resolver_has() -> None:
    told: list[frozenset[str]] = []
    following = asyncio.create_task(discovery.follow("dns:///localhost:50061", told.append))
    async with asyncio.timeout(30):
        while not told:
            await asyncio.sleep(0.01)
    following.cancel()
    assert "127.0.0.1:50061" in told[0]
