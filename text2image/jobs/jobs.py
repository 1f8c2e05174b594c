"""What transports call to have many requests drawn in the background, durably."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from text2image.gateway.auth import Caller
from text2image.jobs.records import (
    Again,
    Dead,
    Item,
    ItemPage,
    ItemState,
    Job,
    JobPage,
    NewItem,
    PictureFile,
)

MAX_ITEMS = 10_000

# Tells somebody of a job's end; None if that went well.
EndedHandler = Callable[[Job], Awaitable[Again | Dead | None]]


class Jobs:
    """All jobs of a server, or of several that share a database.

    Every method may raise `Unavailable` (503, `reason` STORAGE) while the database or its disk is out of reach; nothing
    is lost then, and jobs go on by themselves when it is back. Whoever is not a job's owner is told that there is no
    such job.
    """

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
        raise NotImplementedError

    async def get(self, owner: str, job_id: str) -> Job:
        """A job as it is now.

        Raises:
            JobNotFound: there is none of its owner's.
        """
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

    async def item(self, owner: str, job_id: str, index: int) -> Item:
        """One item of a job.

        Raises:
            JobNotFound: there is no such job of its owner's, or no item of this index.
        """
        raise NotImplementedError

    async def picture(
        self, owner: str, job_id: str, index: int, picture: int = 0
    ) -> tuple[PictureFile, Path]:
        """A finished picture of an item, and the file that holds it, which must not be changed.

        Raises:
            JobNotFound: there is no such job of its owner's, no such item, or no such picture yet.
        """
        raise NotImplementedError

    async def pause(self, owner: str, job_id: str) -> Job:
        """Begins no more items until `resume`; those at work are finished. Does nothing to a job that has ended.

        Raises:
            JobNotFound: there is none of its owner's.
        """
        raise NotImplementedError

    async def resume(self, owner: str, job_id: str) -> Job:
        """Goes on with a paused job; does nothing to others.

        Raises:
            JobNotFound: there is none of its owner's.
        """
        raise NotImplementedError

    async def cancel(self, owner: str, job_id: str) -> Job:
        """Ends a job at once: what is not finished is cancelled, what is at work ends within one step.

        Finished pictures stay. Does nothing to a job that has ended.

        Raises:
            JobNotFound: there is none of its owner's.
        """
        raise NotImplementedError

    async def retry_failed(self, owner: str, job_id: str) -> Job:
        """Queues the failed items again, those apart that could never be read; a completed job goes on with them.

        Raises:
            JobNotFound: there is none of its owner's.
            InvalidRequest: it was cancelled.
        """
        raise NotImplementedError

    async def delete(self, owner: str, job_id: str) -> None:
        """Removes a job with all its pictures, and cancels it before if it has not ended.

        Raises:
            JobNotFound: there is none of its owner's.
        """
        raise NotImplementedError

    def watch(self, owner: str, job_id: str) -> AsyncGenerator[Job, None]:
        """Yields a job now and after changes, a few times a second at most, and last as it ended.

        Raises:
            JobNotFound: there is none of its owner's, or it was deleted meanwhile.
        """
        raise NotImplementedError

    def on_ended(self, handler: EndedHandler) -> None:
        """Has a handler called for each ended job with a webhook, by one process at a time, until it says that it is done.

        At least once for each end, also after crashes, so the receiver may hear twice; a job that goes on by
        `retry_failed` ends anew. How it went is in `Job.webhook`; an exception counts as `Again(60, its text)`.
        Set it before `start`.
        """
        raise NotImplementedError

    async def start(self) -> None:
        """Takes up what earlier processes have left; call it in the event loop that serves. Returns at once."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Begins no more items and lets go of those at work, for the next process or for others."""
        raise NotImplementedError

    async def close(self) -> None:
        """Returns when nothing of it is at work any more."""
        raise NotImplementedError
