"""Callers pay for what is drawn for them: not for a refusal, nor for what the cache has, nor for another's pictures."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.samples import MODEL
from tests.unit.gateway.scripted import HANG, STORY, ScriptedRunner, Step
from tests.unit.gateway.test_quota import caller
from text2image.core.errors import PermissionDenied, QuotaExceeded, Unavailable
from text2image.core.lifecycle import Work
from text2image.core.limits import MEGA
from text2image.core.messages import Queued, RequestParams, State
from text2image.gateway.auth import Caller
from text2image.gateway.cache import PictureCache
from text2image.gateway.cache_backends import DiskBackend
from text2image.gateway.context import RequestContext
from text2image.gateway.generate import Gateway
from text2image.gateway.quota import Quotas
from text2image.gateway.runners import Runners
from text2image.observe.metrics import GatewayMetrics

FULL = Unavailable("full", reason=Unavailable.FULL, retry_after=1)
STEPS = 100
WORK = MODEL.width * MODEL.height * STEPS * 2
TIGHT = caller(f"{WORK // MEGA + 1}/hour")


def asking(who: Caller, seed: int | None) -> RequestContext:
    params = RequestParams(prompt="a fox", n=2, steps=STEPS, seed=seed)
    return RequestContext(caller=who, params=params, title="", timeout=30)


class Service:
    """A gateway with a cache before a runner that plays scripts."""

    def __init__(self, folder: Path, *scripts: list[Step] | tuple[Step, ...]) -> None:
        self.runner = ScriptedRunner(folder / "socket", *scripts)
        metrics = GatewayMetrics(CollectorRegistry())
        self.quotas = Quotas()
        self._runners = Runners([self.runner.address], 0, metrics)
        self.gateway = Gateway(
            self._runners,
            None,
            metrics,
            Work(),
            cache=PictureCache(DiskBackend(folder / "cache", 1 << 20)),
            quotas=self.quotas,
        )

    async def __aenter__(self) -> Service:
        await self.runner.start()
        self._runners.start()
        async for status in self.gateway.statuses():
            if status.state is State.READY:
                break
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runners.close()
        await self.runner.die()

    async def draw(self, who: Caller, seed: int | None = 7) -> RequestContext:
        context = asking(who, seed)
        await self.gateway.draw(context)
        return context

    async def left(self, who: Caller) -> int:
        (spending,) = await self.quotas.standing(who)
        return spending.left


async def test_what_a_runner_refuses_costs_nothing_and_what_it_draws_does(tmp_path: Path) -> None:
    quota = TIGHT.allowance.limits[0].quota
    lost = [Queued(1.0), FULL]
    async with Service(tmp_path, [FULL], lost, STORY) as service:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await service.draw(TIGHT)
            assert await service.left(TIGHT) == quota
        context = await service.draw(TIGHT)
        assert context.standing is not None
        assert context.standing[0].left == quota - WORK


async def test_a_picture_from_the_cache_costs_nothing(tmp_path: Path) -> None:
    async with Service(tmp_path) as service:
        await service.draw(TIGHT)
        for _ in range(3):
            context = await service.draw(TIGHT)
            assert context.standing is not None
            assert context.standing[0].left == TIGHT.allowance.limits[0].quota - WORK
        with pytest.raises(QuotaExceeded):
            await service.draw(TIGHT, seed=8)
        assert len(service.runner.requests) == 1


async def test_one_who_leaves_after_being_admitted_has_paid_and_frees_the_place(
    tmp_path: Path,
) -> None:
    who = caller(f"{WORK // MEGA + 1}/hour", cap=1)
    async with Service(tmp_path, [Queued(1.0), HANG], STORY) as service:
        async with aclosing(service.gateway.stream(asking(who, seed=None))) as events:
            assert await anext(events) == Queued(1.0)
            with pytest.raises(QuotaExceeded, match="1 of your requests"):
                await service.draw(caller(cap=1))
        with pytest.raises(QuotaExceeded, match="/hour leaves"):
            await service.draw(who, seed=None)
        await service.draw(caller(cap=1))


async def test_a_callers_limit_does_not_fail_another_who_asks_for_the_same(tmp_path: Path) -> None:
    """Identical requests share one drawing, which begins on behalf of the first."""
    over, rich = caller(cap=1), caller(name="key:rich")
    denied = caller(f"{WORK // MEGA}/hour", name="key:bob")
    async with Service(tmp_path, [Queued(1.0), HANG], STORY) as service:
        running = asyncio.create_task(service.draw(over, seed=1))
        await service.runner.hung()
        results = await asyncio.gather(
            service.draw(over, seed=2),
            service.draw(denied, seed=2),
            service.draw(rich, seed=2),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [
            QuotaExceeded,
            PermissionDenied,
            RequestContext,
        ]
        running.cancel()
        await asyncio.wait({running})
