"""A disk without room: nothing of a job is lost, and it goes on when there is room again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults.disks import full, small_disk
from tests.unit.jobs.conftest import ALICE, ended, jobs_in, prompts, started, when
from tests.unit.jobs.drawers import TestDrawer, drawn
from text2image.core.errors import Unavailable
from text2image.jobs import worker
from text2image.jobs.claims import Claim
from text2image.jobs.records import Counts
from text2image.jobs.worker import Drawn


async def test_jobs_go_on_when_the_disk_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_LONGEST_PAUSE", 0.2)

    is_full = asyncio.Event()

    async def draw(item: Claim) -> Drawn:
        await is_full.wait()
        return drawn(item, bytes(50_000))

    drawer = TestDrawer(draw, places=2)
    with small_disk(tmp_path, 8) as disk:
        if not disk.is_mount():
            pytest.skip("mounting a disk needs root")
        async with started(jobs_in(tmp_path, drawer)) as jobs:
            job = await jobs.submit(ALICE, prompts(12))
            await when(jobs, job, lambda job: job.counts.running == 2)
            with full(tmp_path):
                is_full.set()
                with pytest.raises(Unavailable) as told:
                    await jobs.submit(ALICE, prompts(5000))
                assert told.value.reason == Unavailable.STORAGE
            job = await ended(jobs, job)
            assert job.counts == Counts(succeeded=12)
            # What was drawn meanwhile was kept, not drawn again.
            assert len(drawer.begun) == 12
            for place in range(12):
                _, path = await jobs.picture(ALICE.name, job.id, place)
                assert path.stat().st_size == 50_000
