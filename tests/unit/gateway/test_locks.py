"""Gateways that share a Redis draw an identical request once; a lock that is lost costs a drawing and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.redis import RedisServer
from tests.unit.gateway.asking import asking
from tests.unit.gateway.scripted import HANG, STORY, ScriptedRunner
from tests.unit.gateway.test_runners import until
from text2image.core.errors import Unavailable
from text2image.core.lifecycle import Work
from text2image.core.messages import StreamOptions
from text2image.gateway.cache import PictureCache
from text2image.gateway.generate import Gateway
from text2image.gateway.runners import Runners
from text2image.gateway.shared.cache import RedisBackend
from text2image.gateway.shared.locks import DrawingLocks
from text2image.gateway.shared.state import SharedState
from text2image.observe.metrics import GatewayMetrics


@pytest.fixture
async def shared(redis: RedisServer) -> AsyncIterator[SharedState]:
    shared = SharedState(redis.url, 2.0)
    yield shared
    await shared.close()


async def hold(locks: DrawingLocks, held: asyncio.Event, over: asyncio.Event) -> bool:
    async with locks.held("a fox") as waited:
        held.set()
        await over.wait()
        return waited


async def test_the_second_waits_for_the_first_and_is_told_so(
    shared: SharedState, redis: RedisServer
) -> None:
    locks = DrawingLocks(shared)
    held, over, free = asyncio.Event(), asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(hold(locks, held, over))
    await held.wait()
    second = asyncio.create_task(hold(locks, free, over))
    with redis.connection as connection:
        async with asyncio.timeout(30):
            while connection.info("commandstats")["cmdstat_set"]["calls"] < 2:
                await asyncio.sleep(0.01)
    async with locks.held("another fox") as waited:
        assert not waited
    assert not free.is_set()
    over.set()
    async with asyncio.timeout(30):
        assert [await first, await second] == [False, True]


async def test_a_lock_is_renewed_while_it_is_held(shared: SharedState, redis: RedisServer) -> None:
    over = asyncio.Event()
    holder = asyncio.create_task(hold(DrawingLocks(shared, 0.6), held := asyncio.Event(), over))
    await held.wait()
    waiter = asyncio.create_task(hold(DrawingLocks(shared, 0.6), asyncio.Event(), over))
    with redis.connection as connection:
        (key,) = connection.keys("text2image:drawing:*")
        value, renewals, before = connection.get(key), 0, 600
        async with asyncio.timeout(30):
            while renewals < 4:
                await asyncio.sleep(0.01)
                left = connection.pttl(key)
                renewals += left > before
                before = left
        assert connection.get(key) == value, "it is the holder's still"
    assert not waiter.done()
    over.set()
    assert [await holder, await waiter] == [False, True]


async def test_a_holder_that_dies_lets_the_next_one_draw(
    shared: SharedState, redis: RedisServer
) -> None:
    over = asyncio.Event()
    holder = asyncio.create_task(hold(DrawingLocks(shared), held := asyncio.Event(), over))
    await held.wait()
    with redis.connection as connection:
        (key,) = connection.keys("text2image:drawing:*")
        # As it is when nobody renews it.
        connection.pexpire(key, 1)
        async with asyncio.timeout(30), DrawingLocks(shared).held("a fox"):
            value = connection.get(key)
            over.set()
            await holder
            assert connection.get(key) == value, "who comes back does not give up another one's"


async def test_without_redis_everybody_draws(shared: SharedState, redis: RedisServer) -> None:
    redis.kill()
    async with asyncio.timeout(30):
        async with (
            DrawingLocks(shared).held("a fox") as first,
            DrawingLocks(shared).held("a fox") as second,
        ):
            assert (first, second) == (False, False)


@dataclass
class Place:
    """A gateway and its only runner."""

    gateway: Gateway
    runner: ScriptedRunner


@pytest.fixture
async def pair(tmp_path: Path, shared: SharedState) -> AsyncIterator[list[Place]]:
    """Two gateways with one cache."""
    async with AsyncExitStack() as stack:
        places = []
        for index in (0, 1):
            runner = ScriptedRunner(tmp_path / str(index))
            await runner.start()
            stack.push_async_callback(runner.die)
            metrics = GatewayMetrics(CollectorRegistry())
            runners = Runners([runner.address], 0, metrics)
            runners.start()
            stack.push_async_callback(runners.close)
            await until(runners, lambda runners=runners: runners.is_ready)  # type: ignore[misc]
            cache = PictureCache(RedisBackend(shared, 60))
            gateway = Gateway(
                runners, None, metrics, Work(), cache=cache, locks=DrawingLocks(shared)
            )
            places.append(Place(gateway, runner))
        yield places


async def test_two_gateways_draw_the_same_request_once(pair: list[Place]) -> None:
    first, second = await asyncio.gather(*(place.gateway.draw(asking()) for place in pair))
    assert sum(len(place.runner.requests) for place in pair) == 1
    assert [each.png for each in first.pictures] == [each.png for each in second.pictures]
    assert {first.cached, second.cached} == {True, False}


async def test_where_the_first_is_refused_the_second_draws(pair: list[Place]) -> None:
    refused, other = pair
    full = Unavailable("full", reason=Unavailable.FULL, retry_after=1)
    refused.runner.play([full])
    failing = asyncio.create_task(refused.gateway.draw(asking()))
    assert (await other.gateway.draw(asking())).pictures
    with contextlib.suppress(Unavailable):
        await failing


async def test_who_leaves_lets_the_next_one_draw(pair: list[Place]) -> None:
    leaving, staying = pair
    leaving.runner.play([STORY[0], HANG])
    drawing = asyncio.create_task(leaving.gateway.draw(asking()))
    await leaving.runner.hung()
    waiting = asyncio.create_task(staying.gateway.draw(asking()))
    drawing.cancel()
    async with asyncio.timeout(30):
        assert (await waiting).pictures
    assert len(staying.runner.requests) == 1


async def test_progress_is_worth_a_drawing_of_its_own(pair: list[Place]) -> None:
    other, watching = pair
    other.runner.play([STORY[0], HANG])
    drawing = asyncio.create_task(other.gateway.draw(asking()))
    await other.runner.hung()
    context = asking()
    context.options = StreamOptions(1)
    async with asyncio.timeout(30):
        assert (await watching.gateway.draw(context)).pictures
    drawing.cancel()
    await asyncio.wait({drawing})
