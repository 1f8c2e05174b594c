"""Several processes that share jobs in a real PostgreSQL: one dies, the database goes away and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgresServer, postgres_server
from tests.unit.jobs.conftest import ALICE, ended, jobs_in, prompts, started, when
from tests.unit.jobs.drawers import TestDrawer, drawn
from text2image.core.errors import Unavailable
from text2image.jobs import database, liveness, worker
from text2image.jobs.claims import Claim
from text2image.jobs.records import Counts
from text2image.jobs.worker import Drawn


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


async def _slowly(item: Claim) -> Drawn:
    await asyncio.sleep(0.02)
    return drawn(item)


async def test_two_gateways_share_a_job_and_draw_nothing_twice(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    drawers = [TestDrawer(_slowly), TestDrawer(_slowly)]
    first, second = (
        jobs_in(tmp_path, drawer, where=postgres.url, boot=boot)
        for drawer, boot in zip(drawers, "ab", strict=True)
    )
    async with started(first), started(second):
        job = await first.submit(ALICE, prompts(60))
        job = await ended(second, job)
        assert job.counts == Counts(succeeded=60)
    begun = [claim.place for drawer in drawers for claim in drawer.begun]
    assert sorted(begun) == list(range(60))
    assert all(drawer.begun for drawer in drawers)


async def test_what_a_gateway_elsewhere_had_goes_on_when_it_shows_no_life(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("text2image.jobs.keeper.LOOK_SECONDS", 0.05)
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.1)
    monkeypatch.setattr("text2image.jobs.keeper.TICK_SECONDS", 0.05)
    hangs = asyncio.Event()

    async def never(item: Claim) -> Drawn:
        await hangs.wait()
        return drawn(item)

    lost = jobs_in(tmp_path, TestDrawer(never), where=postgres.url, boot="a")
    other = jobs_in(tmp_path, TestDrawer(places=0), where=postgres.url, boot="b")
    async with started(lost):
        job = await lost.submit(ALICE, prompts(4))
        await when(lost, job, lambda job: job.counts.running > 0)
        # It hangs: its heart beats no more, but what it draws will come to an end.
        lost._tasks[0].cancel()
        other._drawer._places = 4  # type: ignore[attr-defined]
        async with started(other):
            job = await ended(other, job)
            assert job.counts == Counts(succeeded=4)
            attempts = {item.attempts for item in (await other.items(ALICE.name, job.id)).items}
            assert 2 in attempts
            hangs.set()
            while lost._worker._tasks:
                await asyncio.sleep(0.01)
            # What comes too late leaves no trace.
            page = await other.items(ALICE.name, job.id)
            for item in page.items:
                _, path = await other.picture(ALICE.name, job.id, item.index)
                assert path.exists()
            assert len(list(path.parent.iterdir())) == 4


async def test_jobs_go_on_when_the_database_is_back(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_LONGEST_PAUSE", 0.2)
    drawer = TestDrawer(_slowly)
    async with started(jobs_in(tmp_path, drawer, where=postgres.url)) as jobs:
        job = await jobs.submit(ALICE, prompts(60))
        await when(jobs, job, lambda job: job.counts.succeeded > 5)
        await asyncio.to_thread(postgres.stop)
        with pytest.raises(Unavailable, match="they go on when that is over") as told:
            await jobs.get(ALICE.name, job.id)
        assert told.value.reason == Unavailable.STORAGE
        with pytest.raises(Unavailable):
            await jobs.submit(ALICE, prompts(3))
        await asyncio.to_thread(postgres.restart)
        job = await ended(jobs, job)
        assert job.counts == Counts(succeeded=60)
    # Each was drawn once: what was drawn while the database was away was kept afterwards.
    assert len(drawer.begun) == 60
    assert database.RETRY_AFTER
    assert liveness.SILENT_LOOKS
