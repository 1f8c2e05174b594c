"""Jobs in memory, which are drawn when a test says so: for what stands before the jobs that a server keeps."""

from __future__ import annotations

import asyncio
import builtins
import io
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from text2image.core.errors import InvalidRequest, JobNotFound, Text2ImageError
from text2image.gateway.auth import Caller
from text2image.jobs.jobs import Jobs
from text2image.jobs.records import (
    Counts,
    Item,
    ItemError,
    ItemPage,
    ItemState,
    Job,
    JobPage,
    JobState,
    NewItem,
    PictureFile,
)

PROMPT_THAT_FAILS = "fails"


@dataclass
class _Kept:
    job: Job
    items: list[Item]
    key: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class JobsInMemory(Jobs):
    """As `Jobs` has it, but for what keeps them; with `eager` all is drawn as it is submitted."""

    def __init__(self, folder: Path, *, eager: bool = False) -> None:
        self.kept: dict[str, _Kept] = {}
        self.submitted: list[NewItem] = []
        self.eager = eager
        self._folder = folder

    async def submit(
        self,
        caller: Caller,
        items: Iterable[NewItem] | AsyncIterable[NewItem],
        *,
        name: str = "",
        metadata: Any = None,
        idempotency_key: str = "",
        seconds: float | None = None,
        paused: bool = False,
        **others: Any,
    ) -> Job:
        taken = [item async for item in items] if isinstance(items, AsyncIterable) else list(items)
        for kept in self.kept.values():
            if idempotency_key and (kept.job.owner, kept.key) == (caller.name, idempotency_key):
                return kept.job
        self.submitted += taken
        job = Job(
            id=f"job_{len(self.kept) + 1:024x}",
            owner=caller.name,
            name=name,
            state=JobState.PAUSED if paused else JobState.QUEUED,
            counts=Counts(queued=len(taken)),
            created_at=1_700_000_000.25,
            deadline_at=None if seconds is None else 1_700_000_000.25 + seconds,
            metadata=metadata or {},
        )
        made = [
            Item(
                index=index,
                custom_id=item.custom_id,
                params=None if isinstance(item.params, Text2ImageError) else item.params,
            )
            for index, item in enumerate(taken)
        ]
        self.kept[job.id] = _Kept(job, made, idempotency_key)
        if self.eager and not paused:
            self.draw(job.id)
        return self.kept[job.id].job

    def draw(self, job_id: str, most: int | None = None) -> None:
        """Draws what is queued, or so much of it."""
        kept = self.kept[job_id]
        queued = [item for item in kept.items if item.state is ItemState.QUEUED]
        for item in queued[:most]:
            kept.items[item.index] = self._drawn(job_id, item)
        self._change(kept)

    def _drawn(self, job_id: str, item: Item) -> Item:
        prompt = item.params.prompt if item.params else PROMPT_THAT_FAILS
        if prompt == PROMPT_THAT_FAILS:
            error = ItemError(code="INVALID_REQUEST", message="it is to fail", http_status=400)
            return replace(item, state=ItemState.FAILED, error=error, attempts=item.attempts + 1)
        seed = (item.params and item.params.seed) or 7
        content = io.BytesIO()
        Image.new("RGB", (64, 64), (seed * 37 % 256, item.index * 61 % 256, 120)).save(
            content, "PNG"
        )
        path = self._path(job_id, item.index)
        path.write_bytes(content.getvalue())
        picture = PictureFile(
            index=0,
            name=path.name,
            media_type="image/png",
            size=path.stat().st_size,
            seed=seed,
            width=64,
            height=64,
        )
        return replace(
            item, state=ItemState.SUCCEEDED, pictures=(picture,), attempts=item.attempts + 1
        )

    def _path(self, job_id: str, index: int) -> Path:
        return self._folder / f"{job_id}_{index}.png"

    def _change(self, kept: _Kept, state: JobState | None = None) -> Job:
        by_state = dict.fromkeys(ItemState, 0)
        for item in kept.items:
            by_state[item.state] += 1
        counts = Counts(**{each.value: count for each, count in by_state.items()})
        if state is None:
            state = JobState.RUNNING if counts.queued else JobState.COMPLETED
        kept.job = replace(kept.job, state=state, counts=counts)
        kept.changed.set()
        kept.changed = asyncio.Event()
        return kept.job

    def _find(self, owner: str, job_id: str) -> _Kept:
        kept = self.kept.get(job_id)
        if kept is None or kept.job.owner != owner:
            raise JobNotFound(f"there is no job {job_id!r}")
        return kept

    async def get(self, owner: str, job_id: str) -> Job:
        return self._find(owner, job_id).job

    async def list(
        self, owner: str, *, after: str = "", limit: int = 20, kind: str = ""
    ) -> JobPage:
        jobs = [kept.job for kept in self.kept.values() if kept.job.owner == owner][::-1]
        start = [job.id for job in jobs].index(after) + 1 if after else 0
        page = tuple(jobs[start : start + limit])
        return JobPage(page, page[-1].id if start + limit < len(jobs) else None)

    async def items(
        self,
        owner: str,
        job_id: str,
        *,
        after: int = -1,
        limit: int = 100,
        state: ItemState | None = None,
    ) -> ItemPage:
        found = [
            item
            for item in self._find(owner, job_id).items
            if item.index > after and state in (None, item.state)
        ]
        page = tuple(found[:limit])
        return ItemPage(page, page[-1].index if len(found) > limit else None)

    async def picture(
        self, owner: str, job_id: str, index: int, picture: int = 0
    ) -> tuple[PictureFile, Path]:
        items: builtins.list[Item] = self._find(owner, job_id).items
        if not 0 <= index < len(items) or not 0 <= picture < len(items[index].pictures):
            raise JobNotFound("there is no such picture")
        return items[index].pictures[picture], self._path(job_id, index)

    async def pause(self, owner: str, job_id: str) -> Job:
        return self._change(self._find(owner, job_id), JobState.PAUSED)

    async def resume(self, owner: str, job_id: str) -> Job:
        return self._change(self._find(owner, job_id), JobState.RUNNING)

    async def cancel(self, owner: str, job_id: str) -> Job:
        kept = self._find(owner, job_id)
        kept.items = [
            replace(item, state=ItemState.CANCELLED) if item.state is ItemState.QUEUED else item
            for item in kept.items
        ]
        return self._change(kept, JobState.CANCELLED)

    async def retry_failed(self, owner: str, job_id: str) -> Job:
        kept = self._find(owner, job_id)
        if kept.job.state is JobState.CANCELLED:
            raise InvalidRequest()
        kept.items = [
            replace(item, state=ItemState.QUEUED, error=None)
            if item.state is ItemState.FAILED
            else item
            for item in kept.items
        ]
        return self._change(kept)

    async def delete(self, owner: str, job_id: str) -> None:
        self._find(owner, job_id)
        del self.kept[job_id]

    async def watch(self, owner: str, job_id: str) -> AsyncGenerator[Job, None]:
        while True:
            kept = self._find(owner, job_id)
            changed, job = kept.changed, kept.job
            yield job
            if job.state.has_ended:
                return
            await changed.wait()
