"""A real server that is killed with -9, all its processes at once, while it draws a job, and started again."""

from __future__ import annotations

import asyncio
import io
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from PIL import Image

from tests.e2e.harness import Server
from tests.faults.conftest import ALONE
from tests.faults.test_clock import HOUR, WallClock
from tests.unit.jobs.conftest import jobs_in, started, when
from tests.unit.jobs.drawers import TestDrawer
from text2image.core.messages import RequestParams, Share
from text2image.gateway.auth import Caller
from text2image.jobs.jobs import Jobs
from text2image.jobs.records import Counts, NewItem

ROUNDS = 3
ITEMS = 12
ALICE = Caller("address:127.0.0.1", Share("address:127.0.0.1"))


@asynccontextmanager
async def asking(server: Server) -> AsyncIterator[Jobs]:
    """The server's jobs, as a process that takes them in and draws none."""
    async with started(jobs_in(server.folder / "data" / "jobs", TestDrawer(places=0))) as jobs:
        yield jobs


def kill(server: Server) -> None:
    """Ends all processes of a server with -9 at once."""
    processes = [*server.processes, psutil.Process(server.process.pid)]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    server.process.wait(30)
    psutil.wait_procs(processes, 30)


async def test_a_job_goes_on_after_all_is_killed_and_clocks_jump(tmp_path: Path) -> None:
    clock = WallClock(tmp_path)
    server = Server(tmp_path, T2I_GATEWAY_WORKERS="2", **ALONE, **clock.environment)
    chance = random.Random(1)
    items = [
        NewItem(params=RequestParams(prompt=f"fox {place}", seed=place, steps=4))
        for place in range(ITEMS)
    ]
    await asyncio.to_thread(server.start_until_ready)
    try:
        async with asking(server) as jobs:
            job = await jobs.submit(ALICE, items, seconds=HOUR)
            for round_ in range(1, ROUNDS + 1):
                done = round_ * ITEMS // (ROUNDS + 2)
                await when(jobs, job, lambda job, done=done: job.counts.succeeded >= done, 120)
                await asyncio.sleep(chance.uniform(0, 0.2))
                await asyncio.to_thread(kill, server)
                # Deadlines are kept by a clock that nobody sets.
                clock.set((-1) ** round_ * 24 * HOUR)
                await asyncio.to_thread(server.start_until_ready)
            job = await when(jobs, job, lambda job: job.state.has_ended, 120)
            assert job.counts == Counts(succeeded=ITEMS)
            page = await jobs.items(ALICE.name, job.id)
            assert [item.index for item in page.items] == list(range(ITEMS))
            paths = set()
            for item in page.items:
                file, path = await jobs.picture(ALICE.name, job.id, item.index)
                assert file.seed == item.index
                assert Image.open(io.BytesIO(path.read_bytes())).size == (file.width, file.height)
                paths.add(path)
            assert {Path(found.path) for found in os.scandir(path.parent)} == paths
    finally:
        server.stop()
