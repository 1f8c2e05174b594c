"""What a section of the benchmarks is, how much it measures, and what it measures with."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp

from loadtests.calls import grpc_call, http_call
from loadtests.drivers import Call, closed_loop
from loadtests.inprocess import GUIDANCE_SCALE, PROMPT, STEPS, Worker, bare_pipeline, engine
from tests.e2e.harness import Server
from text2image.client import AsyncClient

# What was measured, as it is kept: JSON.
Figures: TypeAlias = dict[str, Any]
# A ratio that the server is judged by: its name, the figure, and what it should be.
Yardstick: TypeAlias = tuple[str, str, str]

# More than fit in a batch, so that there is always one waiting.
SATURATING_CLIENTS = 40
# A seed that was never used draws a picture that nobody can remember.
SEEDS = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure.

    Attributes:
        turns: how often all that is compared is measured, one after the other.
        lone_calls: lone pictures in a turn, of which the median counts.
        seconds: length of a closed loop.
        open_seconds: length of an open loop.
        storm_seconds: length of the one beyond capacity.
    """

    turns: int
    lone_calls: int
    seconds: float
    open_seconds: float
    storm_seconds: float


FULL = Plan(turns=3, lone_calls=5, seconds=16.0, open_seconds=40.0, storm_seconds=60.0)
QUICK = Plan(turns=2, lone_calls=2, seconds=4.0, open_seconds=8.0, storm_seconds=20.0)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page.

    Attributes:
        name: as it is called on the command line.
        title: its heading.
        measure: the figures.
        text: the figures as Markdown.
        yardsticks: the ratios among them that the server is judged by.
    """

    name: str
    title: str
    measure: Callable[[Bench], Awaitable[Figures]]
    text: Callable[[Figures], str]
    yardsticks: Callable[[Figures], list[Yardstick]] = lambda figures: []


class Bench:
    """A server, and what it is measured against, which is started when it is first asked for."""

    def __init__(
        self,
        plan: Plan,
        server: Server,
        http: aiohttp.ClientSession,
        grpc: AsyncClient,
        stack: ExitStack,
        page: Path,
    ) -> None:
        """`stack` ends what was started; pictures go beside the `page`."""
        self.plan = plan
        self.server = server
        self.page = page
        self._http = http
        self._stack = stack
        self.calls = {
            "HTTP": self.http_call(),
            "gRPC": grpc_call(grpc, PROMPT, guidance_scale=GUIDANCE_SCALE),
        }

    def http_call(self, headers: dict[str, str] | None = None, **fields: Any) -> Call:
        """A picture over HTTP; `fields` go into each request."""
        asked = {"text": PROMPT, "guidance_scale": GUIDANCE_SCALE, **fields}
        return http_call(self._http, self.server.url, headers, **asked)

    @cached_property
    def bare(self) -> Worker:
        """The diffusers pipeline, in a process of its own."""
        return self._stack.enter_context(Worker(bare_pipeline))

    @cached_property
    def engine(self) -> Worker:
        """The engine without a server, in a process of its own."""
        return self._stack.enter_context(Worker(engine))

    async def lone(self) -> float:
        """Median seconds of a picture over HTTP that has the server to itself."""
        calls = self.plan.lone_calls
        return statistics.median([await timed(self.calls["HTTP"]) for _ in range(calls)])

    async def saturation(self) -> float:
        """Pictures per second over HTTP of clients that always have one waiting; measured anew."""
        run = await closed_loop(
            self.calls["HTTP"], clients=SATURATING_CLIENTS, seconds=self.plan.seconds
        )
        return run.rate


async def timed(call: Call) -> float:
    """Seconds of one picture."""
    started = time.perf_counter()
    await call(SEEDS.randrange(2**53), STEPS)
    return time.perf_counter() - started


async def drawn_by(worker: Worker, batch: int = 1) -> float:
    """Seconds that a process here takes for a batch."""
    return await asyncio.to_thread(worker.seconds, batch)


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios turn by turn."""
    return [one / other for one, other in zip(above, below, strict=True)]
