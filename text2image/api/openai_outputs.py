"""The output and error files of OpenAI's batches, which are made of a job's results as they are read.

So they take no place of their own, however large they are, and go with the job.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text2image.api.openai_batch_lines import error_of, output_of
from text2image.api.openai_batch_messages import OUTPUT_PURPOSE, FileObject
from text2image.api.pictures import encoded, length_of, parts_of
from text2image.core.errors import FileNotFound, JobNotFound
from text2image.jobs.files import FileStore
from text2image.jobs.jobs import Jobs
from text2image.jobs.records import Item, ItemState, Job

KIND = "openai.batch"
OUTPUT, ERRORS = "output", "errors"
_ID = re.compile(rf"file-batch_({OUTPUT}|{ERRORS})_([0-9a-f]{{8,64}})")
_BATCH, _JOB = "batch_", "job_"
# Items that are looked up at once.
_PAGE = 200


@dataclass(frozen=True, slots=True)
class OutputFile:
    """Which file of which batch an id names."""

    kind: str
    job_id: str

    @property
    def id(self) -> str:
        return f"file-batch_{self.kind}_{self.job_id.removeprefix(_JOB)}"


def output_named(file_id: str) -> OutputFile | None:
    """The output or error file of this id; None if it is that of an upload."""
    match = _ID.fullmatch(file_id)
    return OutputFile(match[1], f"{_JOB}{match[2]}") if match else None


def batch_id_of(job_id: str) -> str:
    return f"{_BATCH}{job_id.removeprefix(_JOB)}"


def job_id_of(batch_id: str) -> str:
    return f"{_JOB}{batch_id.removeprefix(_BATCH)}"


def outputs_of(job: Job) -> Iterator[OutputFile]:
    """The files of a batch: none before it has ended, and none that would be empty."""
    if not job.state.has_ended or job.extra.get("errors"):
        return
    if job.counts.succeeded:
        yield OutputFile(OUTPUT, job.id)
    if job.counts.failed + job.counts.cancelled:
        yield OutputFile(ERRORS, job.id)


async def job_of(jobs: Jobs, files: FileStore, owner: str, file: OutputFile) -> Job:
    """The batch that has a file.

    Raises:
        FileNotFound: there is no such batch of its owner's, or not this file of it, or it was deleted.
    """
    with suppress(JobNotFound):
        job = await jobs.get(owner, file.job_id)
        there = job.kind == KIND and file in outputs_of(job)
        if there and not await asyncio.to_thread(files.is_hidden, owner, file.id):
            return job
    raise FileNotFound(f"there is no file {file.id!r} of yours")


async def described(jobs: Jobs, job: Job, file: OutputFile) -> FileObject:
    """A file as it is told of; its size follows from those of the pictures."""
    size = 0
    async for item in _items(jobs, job, file):
        files = [bytes(0)] * len(item.pictures)
        # Three bytes of a picture are four letters.
        size += sum((picture.size + 2) // 3 * 4 for picture in item.pictures)
        size += sum(map(length_of, parts_of(_line(job, item, files)))) + 1
    return FileObject(
        id=file.id,
        bytes=size,
        created_at=int(job.ended_at or job.created_at),
        expires_at=int(job.expires_at) if job.expires_at else None,
        filename=f"{batch_id_of(job.id)}_{file.kind}.jsonl",
        purpose=OUTPUT_PURPOSE,
    )


async def content(jobs: Jobs, job: Job, file: OutputFile) -> AsyncGenerator[bytes, None]:
    """A file, in pieces; one item's pictures are held at a time."""
    async for item in _items(jobs, job, file):
        files = [
            await asyncio.to_thread((await _picture(jobs, job, item, number)).read_bytes)
            for number in range(len(item.pictures))
        ]
        for part in parts_of(_line(job, item, files)):
            for piece in encoded(part):
                yield piece
        yield b"\n"


async def _picture(jobs: Jobs, job: Job, item: Item, number: int) -> Path:
    _, path = await jobs.picture(job.owner, job.id, item.index, number)
    return path


def _line(job: Job, item: Item, files: list[bytes]) -> dict[str, Any]:
    batch_id = batch_id_of(job.id)
    if item.state is ItemState.SUCCEEDED:
        return output_of(item, batch_id, files)
    return error_of(item, batch_id)


async def _items(jobs: Jobs, job: Job, file: OutputFile) -> AsyncIterator[Item]:
    """The items that a file has a line of, in the order of the input."""
    state = ItemState.SUCCEEDED if file.kind == OUTPUT else None
    after: int | None = -1
    while after is not None:
        page = await jobs.items(job.owner, job.id, after=after, limit=_PAGE, state=state)
        for item in page.items:
            if (item.state is ItemState.SUCCEEDED) == (file.kind == OUTPUT):
                yield item
        after = page.after
