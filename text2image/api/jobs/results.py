"""Downloads of a job's results, as JSON Lines and as a zip; a page of them or a picture at a time is in memory."""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import IO, cast

from text2image.api import rest
from text2image.jobs.jobs import Jobs
from text2image.jobs.records import Item, ItemState
from text2image.jobs.views import file_name, item_view

_PAGE = 200
MANIFEST = "results.jsonl"
JSONL, ZIP = "application/jsonl", "application/zip"


async def items_of(
    jobs: Jobs, owner: str, job_id: str, state: ItemState | None
) -> AsyncGenerator[Item, None]:
    """All items of a job, page by page."""
    after: int | None = -1
    while after is not None:
        page = await jobs.items(owner, job_id, after=after, limit=_PAGE, state=state)
        for item in page.items:
            yield item
        after = page.after


def line_of(job_id: str, item: Item) -> bytes:
    shown = item_view(job_id, item, rest.NAMES).model_dump(mode="json")
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


async def lines(
    jobs: Jobs, owner: str, job_id: str, state: ItemState | None
) -> AsyncGenerator[bytes, None]:
    async for item in items_of(jobs, owner, job_id, state):
        yield line_of(job_id, item)


class _Sink:
    """A file that holds what was written since it was last taken."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._size = 0

    def write(self, data: bytes) -> int:
        self._held += data
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        taken, self._held = bytes(self._held), bytearray()
        return taken


async def zipped(jobs: Jobs, owner: str, job_id: str) -> AsyncGenerator[bytes, None]:
    """A zip of all pictures, in the order of the requests, and what `lines` tells at its end.

    Pictures are compressed as they are, so they are stored. Of each only its name stays in memory, as the format puts
    all names at the end.
    """
    sink = _Sink()
    manifest: list[bytes] = []
    # As much of a file as it needs.
    file = cast(IO[bytes], sink)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        async for item in items_of(jobs, owner, job_id, None):
            manifest.append(line_of(job_id, item))
            for picture in item.pictures:
                _, path = await jobs.picture(owner, job_id, item.index, picture.index)
                await asyncio.to_thread(_add, archive, file_name(item, picture), path)
                yield sink.take()
        archive.writestr(MANIFEST, b"".join(manifest), zipfile.ZIP_DEFLATED)
        yield sink.take()
    yield sink.take()


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    # The time of a file is nobody's business, and the same job makes the same zip.
    archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
