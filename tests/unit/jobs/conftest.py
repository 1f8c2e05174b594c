"""Jobs on a real database in a folder of the test's own, drawn without a model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.unit.jobs.drawers import TestDrawer
from text2image.core.messages import RequestParams, Share
from text2image.gateway.auth import Caller
from text2image.jobs.jobs import Jobs
from text2image.jobs.records import EndedHandler, Job, NewItem

ALICE, BOB = (Caller(f"key:{name}", Share(f"key:{name}")) for name in ("alice", "bob"))


def jobs_in(
    folder: Path,
    drawer: TestDrawer | None = None,
    *,
    where: str | None = None,
    max_items: int = 100_000,
    keep_seconds: float = 1e6,
    keep_bytes: int = 1 << 30,
    boot: str | None = None,
) -> Jobs:
    return Jobs(
        where or folder / "jobs.sqlite",
        folder,
        drawer or TestDrawer(),
        max_items=max_items,
        keep_seconds=keep_seconds,
        keep_bytes=keep_bytes,
        boot=boot,
    )


@asynccontextmanager
async def started(jobs: Jobs, handler: EndedHandler | None = None) -> AsyncIterator[Jobs]:
    if handler:
        jobs.on_ended(handler)
    await jobs.start()
    try:
        yield jobs
    finally:
        await jobs.close()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Jobs]]]:
    """Starts jobs in the test's folder, drawn by the drawer that is given, and ends them after the test."""
    async with AsyncExitStack() as stack:

        async def begin(
            drawer: TestDrawer | None = None, handler: EndedHandler | None = None, **options: object
        ) -> Jobs:
            jobs = jobs_in(tmp_path, drawer, **options)  # type: ignore[arg-type]
            return await stack.enter_async_context(started(jobs, handler))

        yield begin


def prompts(count: int, **params: object) -> list[NewItem]:
    return [
        NewItem(params=RequestParams(prompt=f"prompt {i}", seed=i, **params), custom_id=f"c{i}")  # type: ignore[arg-type]
        for i in range(count)
    ]


async def when(jobs: Jobs, job: Job, is_so: Callable[[Job], bool], seconds: float = 30.0) -> Job:
    """The job as soon as something is so of it."""
    deadline = time.monotonic() + seconds
    while not is_so(job := await jobs.get(job.owner, job.id)):
        assert time.monotonic() < deadline, job
        await asyncio.sleep(0.02)
    return job


async def ended(jobs: Jobs, job: Job) -> Job:
    return await when(jobs, job, lambda job: job.state.has_ended)
