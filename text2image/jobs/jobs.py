"""What transports call to have many requests drawn in the background, durably."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from text2image.core.errors import (
    FieldViolation,
    InvalidRequest,
    JobNotFound,
    Unavailable,
)
from text2image.gateway.auth import Caller
from text2image.jobs import control, reading, submission
from text2image.jobs.database import Database
from text2image.jobs.keeper import Keeper
from text2image.jobs.liveness import Liveness
from text2image.jobs.metrics import JobMetrics
from text2image.jobs.pictures import PictureFolder
from text2image.jobs.records import (
    EndedHandler,
    Item,
    ItemPage,
    ItemState,
    Job,
    JobPage,
    NewItem,
    PictureFile,
)
from text2image.jobs.taking import Taking
from text2image.jobs.worker import Drawer, Worker

logger = logging.getLogger(__name__)

MAX_ITEMS = 10_000
# Seconds between two looks of `watch` at a job: after a change, and where another process may have made one.
_WATCH_SECONDS, _UNSEEN_SECONDS = 0.25, 1.0


class Jobs:
    """All jobs of a server, or of several that share a database.

    Every method may raise `Unavailable` (503, `reason` STORAGE) while the database or its disk is out of reach; nothing
    is lost then, and jobs go on by themselves when it is back. Whoever is not a job's owner is told that there is no
    such job.
    """

    def __init__(
        self,
        where: str | Path | None,
        folder: Path,
        drawer: Drawer,
        *,
        max_items: int,
        keep_seconds: float,
        keep_bytes: int,
        metrics: JobMetrics | None = None,
        boot: str | None = None,
    ) -> None:
        """
        Args:
            where: URL of a PostgreSQL, or the path of an SQLite; None where no jobs are taken.
            folder: of pictures and locks; all processes that share the database share it.
            max_items: unfinished items of an owner.
            keep_seconds, keep_bytes: for how long ended jobs are kept, and how large all pictures may be.
            boot: as `Liveness` has it.
        """
        self._database_or_none = Database(where) if where else None
        if self._database_or_none is None:
            return
        self._max_items = max_items
        self._keep_seconds = keep_seconds
        self._drawer = drawer
        self._pictures = PictureFolder(folder / "pictures")
        self._liveness = Liveness(self._database, folder / "processes", boot)
        finished = metrics.finished if metrics else _count_nothing
        self._worker = Worker(
            self._database, self._pictures, drawer, self._liveness, self._change, finished
        )
        self._keeper = Keeper(
            self._database,
            self._pictures,
            self._liveness,
            self._worker,
            self._change,
            keep_seconds=keep_seconds,
            keep_bytes=keep_bytes,
        )
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def _database(self) -> Database:
        if self._database_or_none is None:
            raise JobNotFound("this server takes no jobs; T2I_JOBS=1 has it take them")
        return self._database_or_none

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def submit(
        self,
        caller: Caller,
        items: Iterable[NewItem] | AsyncIterable[NewItem],
        *,
        name: str = "",
        kind: str = "native",
        metadata: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
        idempotency_key: str = "",
        webhook_url: str = "",
        seconds: float | None = None,
        paused: bool = False,
    ) -> Job:
        """Takes in a job; it is durable from the moment that this returns, and nothing is left of it if this raises.

        Items are read as they come and not held in memory. What `items` raises is raised on.

        Args:
            idempotency_key: the owner's earlier job with this key and the same items is returned in its place.
            webhook_url: passed to the handler of `on_ended` in `Job.webhook`; not checked here.
            seconds: after which items that are not drawn yet fail with DEADLINE_EXCEEDED; never if None.
            paused: it is not begun before `resume`.

        Raises:
            InvalidRequest: no item, more than MAX_ITEMS, a key that was used with other items, or extra or metadata
                that is no JSON or longer than 64 KiB.
            QuotaExceeded: its owner has more unfinished items than T2I_JOBS_MAX_ITEMS allows.
            Unavailable: it could not be written.
        """
        form = submission.form_of(
            caller.name,
            name=name,
            kind=kind,
            metadata=metadata,
            extra=extra,
            idempotency_key=idempotency_key,
            webhook_url=webhook_url,
            seconds=seconds,
            paused=paused,
        )
        await self._entered()
        taking = Taking(self._database, form, caller, self._drawer, self._liveness.id)
        job_id = await taking.take(items, MAX_ITEMS, self._max_items)
        self._woken()
        return await self.get(caller.name, job_id)

    async def get(self, owner: str, job_id: str) -> Job:
        """A job as it is now.

        Raises:
            JobNotFound: there is none of its owner's.
        """
        return await self._database.run(reading.get, owner, job_id, time.time(), self._keep_seconds)

    async def list(
        self, owner: str, *, after: str = "", limit: int = 20, kind: str = ""
    ) -> JobPage:
        """An owner's jobs, newest first.

        Args:
            after: `JobPage.after` of the page before; also the id of any of the owner's jobs.
            limit: 1 to 100.
            kind: jobs of this kind alone; of any if it is empty.

        Raises:
            InvalidRequest: the limit is none, or `after` is unknown.
        """
        _require_limit(limit, reading.MAX_JOBS)
        return await self._database.run(
            reading.page, owner, after, limit, kind, time.time(), self._keep_seconds
        )

    async def items(
        self,
        owner: str,
        job_id: str,
        *,
        after: int = -1,
        limit: int = 100,
        state: ItemState | None = None,
    ) -> ItemPage:
        """Items of a job in their order, those behind the index `after`, in one state if that is named.

        Raises:
            JobNotFound: there is none of its owner's.
            InvalidRequest: the limit is not between 1 and 1000.
        """
        _require_limit(limit, reading.MAX_PAGE)
        return await self._database.run(reading.item_page, owner, job_id, after, limit, state)

    async def item(self, owner: str, job_id: str, index: int) -> Item:
        """One item of a job.

        Raises:
            JobNotFound: there is no such job of its owner's, or no item of this index.
        """
        return await self._database.run(reading.item, owner, job_id, index)

    async def picture(
        self, owner: str, job_id: str, index: int, picture: int = 0
    ) -> tuple[PictureFile, Path]:
        """A finished picture of an item, and the file that holds it, which must not be changed.

        Raises:
            JobNotFound: there is no such job of its owner's, no such item, or no such picture yet.
        """
        file, attempt = await self._database.run(reading.picture, owner, job_id, index, picture)
        return file, self._pictures.path(job_id, index, attempt, file)

    async def pause(self, owner: str, job_id: str) -> Job:
        """Begins no more items until `resume`; those at work are finished. Does nothing to a job that has ended.

        Raises:
            JobNotFound: there is none of its owner's.
        """
        await self._database.run(control.pause, owner, job_id)
        return await self._changed_job(owner, job_id)

    async def resume(self, owner: str, job_id: str) -> Job:
        """Goes on with a paused job; does nothing to others.

        Raises:
            JobNotFound: there is none of its owner's.
        """
        await self._database.run(control.resume, owner, job_id)
        return await self._changed_job(owner, job_id)

    async def cancel(self, owner: str, job_id: str) -> Job:
        """Ends a job at once: what is not finished is cancelled, what is at work ends within one step.

        Finished pictures stay. Does nothing to a job that has ended.

        Raises:
            JobNotFound: there is none of its owner's.
        """
        await self._database.run(control.cancel, owner, job_id, time.time())
        return await self._changed_job(owner, job_id)

    async def retry_failed(self, owner: str, job_id: str) -> Job:
        """Queues the failed items again, those apart that could never be read; a completed job goes on with them.

        Raises:
            JobNotFound: there is none of its owner's.
            InvalidRequest: it was cancelled.
        """
        await self._database.run(control.retry_failed, owner, job_id)
        return await self._changed_job(owner, job_id)

    async def tell_again(self, owner: str, job_id: str) -> Job:
        """Has the handler of `on_ended` called anew for an ended job, however it went before.

        Raises:
            JobNotFound: there is none of its owner's.
            InvalidRequest: it has no webhook, or has not ended.
        """
        number = await self._database.run(control.tell_again, owner, job_id)
        self._keeper.hurry(number)
        return await self._changed_job(owner, job_id)

    async def delete(self, owner: str, job_id: str) -> None:
        """Removes a job with all its pictures, and cancels it before if it has not ended.

        Raises:
            JobNotFound: there is none of its owner's.
        """
        await self._database.run(control.remove, owner, job_id, time.time())
        self._woken()

    async def watch(self, owner: str, job_id: str) -> AsyncGenerator[Job, None]:
        """Yields a job now and after changes, a few times a second at most, and last as it ended.

        Raises:
            JobNotFound: there is none of its owner's, or it was deleted meanwhile.
        """
        job = await self.get(owner, job_id)
        while True:
            changed = self._changed
            yield job
            if job.state.has_ended:
                return
            last = job
            while _seen(job) == _seen(last):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), _UNSEEN_SECONDS)
                await asyncio.sleep(_WATCH_SECONDS)
                changed = self._changed
                # Nothing is lost while the database is away, so whoever watches sees how it goes on.
                with contextlib.suppress(Unavailable):
                    job = await self.get(owner, job_id)

    def on_ended(self, handler: EndedHandler) -> None:
        """Has a handler called for each ended job with a webhook, by one process at a time, until it is done.

        At least once for each end, also after crashes, so the receiver may hear twice; a job that goes on by
        `retry_failed` ends anew. How it went is in `Job.webhook`; an exception counts as `Again(60, its text)`.
        Set it before `start`.
        """
        if self._database_or_none is not None:
            self._keeper.handler = handler

    async def start(self) -> None:
        """Takes up what earlier processes have left; call it in the event loop that serves. Returns at once."""
        if self._database_or_none is not None:
            self._tasks = [
                asyncio.create_task(self._keeper.run()),
                asyncio.create_task(self._worker.run()),
            ]

    async def drain(self) -> None:
        """Begins no more items and lets go of those at work, for the next process or for others."""
        if self._database_or_none is not None:
            await self._worker.drain()

    async def close(self) -> None:
        """Returns when nothing of it is at work any more."""
        if self._database_or_none is None:
            return
        await self.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._keeper.close()
        with contextlib.suppress(Unavailable):
            await self._liveness.leave()
        await asyncio.to_thread(self._database.close)

    async def _entered(self) -> None:
        """Returns when this process is one of those who work, so that what it takes in is known to be its own."""
        if self._database and not self._liveness.id:
            await self._liveness.look()

    async def _changed_job(self, owner: str, job_id: str) -> Job:
        self._woken()
        return await self.get(owner, job_id)

    def _woken(self) -> None:
        self._change()
        self._worker.wake()
        # It ends at once what was cancelled.
        self._keeper.wake()


def _require_limit(limit: int, most: int) -> None:
    if not 1 <= limit <= most:
        raise InvalidRequest(FieldViolation("limit", f"must be between 1 and {most}"))


def _seen(job: Job) -> Job:
    """What of a job is worth telling again if it changes."""
    return replace(job, predicted_end=None, deadline_at=None, expires_at=None)


def _count_nothing(state: str) -> None:
    pass
