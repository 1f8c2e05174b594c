"""Draws the items of jobs: takes as many as the runners have use for, and keeps what comes of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from text2image.core.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    QuotaExceeded,
    Text2ImageError,
    Unavailable,
)
from text2image.core.messages import Picture, RequestParams
from text2image.jobs import claims, codec
from text2image.jobs.claims import Claim
from text2image.jobs.database import Database
from text2image.jobs.liveness import Liveness
from text2image.jobs.pictures import PictureFolder
from text2image.jobs.records import ItemError

logger = logging.getLogger(__name__)

# How often a drawing may be lost after it was admitted; then it is the item that is to blame.
MAX_LOSSES = 5
# Seconds until others' jobs are looked for, and the longest until something is tried again.
POLL_SECONDS = 1.0
_LONGEST_PAUSE = 30.0
# Seconds for which pictures that cannot be written hold up the end of the process.
_LINGER = 5.0
_NO_RUNNER = "it waits for a runner that is ready"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Drawn:
    """What an item has become."""

    pictures: list[Picture]
    message: str


class Drawer(Protocol):
    """What draws an item. Its errors say what becomes of it."""

    async def draw(self, item: Claim) -> Drawn:
        """Draws an item; being cancelled ends it within one step."""

    def places(self) -> int:
        """How many items are worth having at work, here and in other processes; 0 where nobody draws."""

    def cap(self, owner: str) -> int | None:
        """How many of an owner's may be at work; None if any number."""

    def work(self, params: RequestParams) -> int | None:
        """Pixel-steps that a request costs; None if that cannot be told."""


class Worker:
    """Draws items until `drain`. Use it from one event loop; `changed` is called after each change of a job."""

    def __init__(
        self,
        database: Database,
        pictures: PictureFolder,
        drawer: Drawer,
        liveness: Liveness,
        changed: Callable[[], None],
        finished: Callable[[str], None],
    ) -> None:
        self._database = database
        self._pictures = pictures
        self._drawer = drawer
        self._liveness = liveness
        self._changed = changed
        self._finished = finished
        self._tasks: dict[Claim, asyncio.Task[None]] = {}
        # Those that are drawn and being written, which must not be ended half-way.
        self._keeping: set[Claim] = set()
        # By owner: until when, in this process's time, the quota is known to be used up, and how it says so.
        self._held: dict[str, tuple[float, str]] = {}
        self._wake = asyncio.Event()
        self._leaving = False

    def wake(self) -> None:
        """Has it look for items at once."""
        self._wake.set()

    async def run(self) -> None:
        """Claims and draws until `drain`."""
        while not self._leaving:
            claimed = 0
            # Before it looks, so that what comes meanwhile is looked for too.
            self._wake.clear()
            try:
                claimed = await self._claim()
            except Unavailable:
                # The database has told of it.
                pass
            except Exception:
                logger.exception("looking for items of jobs")
            if claimed:
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)

    async def _claim(self) -> int:
        places = self._drawer.places()
        now = time.monotonic()
        self._held = {owner: held for owner, held in self._held.items() if held[0] > now}
        reasons = {owner: why for owner, (_, why) in self._held.items()}
        if places:
            news = await self._database.run(claims.wait_for, reasons)
        else:
            # Another process may have a runner.
            news = await self._database.run(claims.wait_for_all, _NO_RUNNER)
        if news:
            self._changed()
        free = -(-places // self._liveness.count) - len(self._tasks)
        if free <= 0 or not self._liveness.id:
            return 0
        at_work = Counter(claim.owner for claim in self._tasks)
        process = self._liveness.id
        taken = await self._database.run(
            claims.claim, process, free, at_work, self._cap, time.time()
        )
        for claim in taken:
            if self._leaving or self._liveness.id != process:
                # It was let go of meanwhile, or is about to be.
                break
            task = asyncio.create_task(self._work(claim))
            self._tasks[claim] = task
        if taken:
            self._changed()
        return len(taken)

    def _cap(self, owner: str) -> int | None:
        return 0 if owner in self._held else self._drawer.cap(owner)

    async def revoke(self) -> None:
        """Ends the drawing of items that are no longer this process's: cancelled, removed, or taken over.

        Raises:
            Unavailable: the database is out of reach.
        """
        if not self._tasks:
            return
        before = list(self._tasks)
        mine = await self._database.run(claims.mine, self._liveness.id)
        for claim in before:
            if claim.key not in mine:
                self._end(claim)

    def _end(self, claim: Claim) -> None:
        task = self._tasks.get(claim)
        if task and claim not in self._keeping:
            task.cancel()

    async def drain(self) -> None:
        """Claims no more, ends what is drawn, and returns when what was finished is kept."""
        self._leaving = True
        self.wake()
        for claim in list(self._tasks):
            self._end(claim)
        if self._tasks:
            _, late = await asyncio.wait(self._tasks.values(), timeout=_LINGER)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _work(self, claim: Claim) -> None:
        try:
            await self._draw(claim)
        except Exception:
            logger.exception("item %d of %s", claim.place, claim.job_id)
            await self._release(claim)
        finally:
            del self._tasks[claim]
            self.wake()

    async def _draw(self, claim: Claim) -> None:
        losses = claim.losses
        while True:
            try:
                drawn = await self._drawer.draw(claim)
            except QuotaExceeded as error:
                until = time.monotonic() + (error.retry_after or 1.0)
                self._held[claim.owner] = until, error.message
                await self._release(claim)
                return
            except Unavailable as error:
                if error.reason == Unavailable.DRAINING:
                    await self._release(claim)
                    return
                await asyncio.sleep(min(error.retry_after or 1.0, _LONGEST_PAUSE))
            except DeadlineExceeded:
                # Others came first for as long as one request may wait; its job's own deadline the keeper looks after.
                await asyncio.sleep(1.0)
            except Exception as problem:
                losses += 1
                told = _told(problem)
                hopeless = told.http_status < 500 and not isinstance(told, Cancelled)
                if hopeless or losses >= MAX_LOSSES:
                    await self._fail(claim, codec.error_of(told))
                    return
                await _until_kept(lambda: self._database.run(claims.lose, claim))
                await asyncio.sleep(min(2.0 ** (losses - 1), _LONGEST_PAUSE))
            else:
                await self._keep(claim, drawn)
                return

    async def _keep(self, claim: Claim, drawn: Drawn) -> None:
        self._keeping.add(claim)
        try:
            write = (claim.job_id, claim.place, claim.attempt, drawn.pictures, claim.encoding)
            files = await _until_kept(lambda: asyncio.to_thread(self._pictures.write, *write))
            kept = await _until_kept(
                lambda: self._database.run(
                    claims.succeed, claim, files, drawn.message, time.time()
                ),
            )
            await self._ended(claim, "succeeded", kept)
        finally:
            self._keeping.discard(claim)

    async def _fail(self, claim: Claim, error: ItemError) -> None:
        where = (claim.job_id, claim.place, claim.attempt)
        await asyncio.to_thread(self._pictures.remove_earlier, *where)
        kept = await _until_kept(lambda: self._database.run(claims.fail, claim, error, time.time()))
        await self._ended(claim, "failed", kept)

    async def _ended(self, claim: Claim, state: str, kept: bool) -> None:
        if kept:
            self._finished(state)
        else:
            where = (claim.job_id, claim.place, claim.attempt)
            await asyncio.to_thread(self._pictures.remove_attempt, *where)
        self._changed()

    async def _release(self, claim: Claim) -> None:
        await _until_kept(lambda: self._database.run(claims.release, claim))
        self._changed()


async def _until_kept(keep: Callable[[], Awaitable[T]]) -> T:
    """Tries until the disk and the database take it: what is drawn once is not drawn again for their sake."""
    pause, told = 1.0, False
    while True:
        try:
            return await keep()
        except (Unavailable, OSError) as error:
            if not told:
                logger.error("a job's item cannot be kept yet: %s", error)
                told = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _told(problem: Exception) -> Text2ImageError:
    if isinstance(problem, Text2ImageError):
        return problem
    internal = Internal()
    logger.error("error %s", internal.error_id, exc_info=problem)
    return internal
