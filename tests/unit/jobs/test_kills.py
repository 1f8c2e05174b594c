"""Processes that work on jobs are killed with -9 at random moments, and the next one goes on."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from pathlib import Path

from tests.unit.jobs.conftest import ALICE, ended, jobs_in, started
from tests.unit.jobs.drawers import TestDrawer, drawn
from text2image.core.messages import RequestParams
from text2image.jobs.claims import Claim
from text2image.jobs.records import Counts, NewItem
from text2image.jobs.worker import Drawn

ROUNDS = 55
ITEMS = 12
PLACES = 3


def _work(folder: Path, round_: int, told: Connection) -> None:
    """Takes in a job and draws whatever there is, until it is killed."""
    chance = random.Random(round_)

    async def draw(item: Claim) -> Drawn:
        with (folder / "drawn.log").open("a") as log:
            log.write(f"{item.job_id} {item.place}\n")
        await asyncio.sleep(chance.uniform(0, 0.01))
        return drawn(item, f"{item.params.prompt}".encode())

    async def work() -> None:
        jobs = jobs_in(folder, TestDrawer(draw, PLACES))
        await jobs.start()
        told.send("started")
        items = [
            NewItem(params=RequestParams(prompt=f"{round_} {place}", seed=place))
            for place in range(ITEMS)
        ]
        job = await jobs.submit(ALICE, items, name=str(round_))
        told.send(job.id)
        await asyncio.Event().wait()

    asyncio.run(work())


async def test_each_prompt_has_exactly_one_result_whatever_is_killed(tmp_path: Path) -> None:
    # Forked from a process that has imported all of it.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    chance = random.Random(0)
    promised: dict[str, str] = {}
    for round_ in range(ROUNDS):
        here, there = processes.Pipe(duplex=False)
        process = processes.Process(target=_work, args=(tmp_path, round_, there))
        process.start()
        there.close()
        try:
            assert await asyncio.to_thread(here.recv) == "started"
            if round_ % 2:
                # Killed while it draws, and else while it takes in a job.
                promised[await asyncio.to_thread(here.recv)] = str(round_)
            time.sleep(chance.uniform(0, 0.25))  # noqa: ASYNC251 # any moment will do
        finally:
            process.kill()
            await asyncio.to_thread(process.join)
        # It may have been killed before it told, or while it did.
        with contextlib.suppress(EOFError):
            promised[here.recv()] = str(round_)
        here.close()
    assert promised
    async with started(jobs_in(tmp_path)) as jobs:
        found = (await jobs.list(ALICE.name, limit=100)).jobs
        # Nothing that was promised is lost; of what was not, all is there or nothing.
        assert promised.items() <= {job.id: job.name for job in found}.items()
        for job in found:
            job = await ended(jobs, job)
            assert job.counts == Counts(succeeded=ITEMS)
            page = await jobs.items(ALICE.name, job.id, limit=1000)
            assert [item.index for item in page.items] == list(range(ITEMS))
            paths = set()
            for item in page.items:
                file, path = await jobs.picture(ALICE.name, job.id, item.index)
                assert (file.seed, len(item.pictures)) == (item.index, 1)
                assert item.params
                assert path.read_bytes() in (b"PNG", item.params.prompt.encode())
                paths.add(path)
            # Of those who were killed no files are left.
            assert set(path.parent.iterdir()) == paths
    drawings = (tmp_path / "drawn.log").read_text().split("\n")[:-1]
    # Twice is only drawn what was at work when its process was killed.
    assert len(drawings) - len(set(drawings)) <= ROUNDS * PLACES
