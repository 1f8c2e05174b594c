"""Takes in one job: reads its items as they come, and writes them in parts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

from sqlalchemy.exc import IntegrityError

from text2image.core.errors import FieldViolation, InvalidRequest, Unavailable
from text2image.core.limits import MEGA
from text2image.gateway.auth import Caller
from text2image.jobs import submission
from text2image.jobs.database import Database
from text2image.jobs.records import NewItem
from text2image.jobs.submission import Digest, Form
from text2image.jobs.worker import Drawer

# Items of one transaction.
_PART = 500
# And their bytes, where they bring pictures.
_PART_BYTES = 32 << 20
_A_DAY = 86400


class Taking:
    """One submission; `process` is who takes it in."""

    def __init__(
        self, database: Database, form: Form, caller: Caller, drawer: Drawer, process: str
    ) -> None:
        self._database = database
        self._form = form
        self._caller = caller
        self._drawer = drawer
        self._process = process
        self._digest = Digest(form)
        self._total = 0
        self._work = 0

    async def take(
        self, items: Iterable[NewItem] | AsyncIterable[NewItem], most: int, unfinished: int
    ) -> str:
        """Answers with the id of the job, which is durable, or of an earlier one with its key.

        Args:
            most: items of a job.
            unfinished: items that its owner may have in all jobs.

        Raises:
            Text2ImageError: as `Jobs.submit` says; nothing is left of it then.
        """
        number = await self._database.run(submission.begin, self._form, self._process, time.time())
        try:
            part: list[dict[str, Any]] = []
            size = 0
            async for item in _each(items):
                if self._total >= most:
                    raise InvalidRequest(
                        FieldViolation("items", f"a job has at most {most}; make several of them")
                    )
                part.append(submission.row_of(self._total, item, time.time()))
                self._count(item)
                size += len(part[-1]["files"] or b"")
                if len(part) >= _PART or size >= _PART_BYTES:
                    await self._write(number, part)
                    part, size = [], 0
            if not self._total:
                raise InvalidRequest(FieldViolation("items", "there is none"))
            await self._write(number, part)
            return await self._finish(number, unfinished)
        except BaseException:
            await self._abandon(number)
            raise

    def _count(self, item: NewItem) -> None:
        self._total += 1
        if self._caller.allowance.limits and not isinstance(item.params, Exception):
            self._work += self._drawer.work(item.params) or 0

    async def _write(self, number: int, part: list[dict[str, Any]]) -> None:
        self._digest.add(part)
        await self._database.run(submission.add, number, part)

    async def _finish(self, number: int, unfinished: int) -> str:
        digest, warning = self._digest.text(), self._warning()
        words = (number, self._form, digest, self._total, warning, unfinished)
        try:
            return await self._database.run(submission.finish, *words, time.time())
        except IntegrityError:
            # Another with the same key has come first; now it is seen.
            return await self._database.run(submission.finish, *words, time.time())

    async def _abandon(self, number: int) -> None:
        try:
            await self._database.run(submission.remove, number)
        except Unavailable:
            # It stays hidden, and goes when this process does.
            return

    def _warning(self) -> str:
        limits = self._caller.allowance.limits
        if not limits:
            return ""
        slowest = max(limits, key=lambda limit: self._work / limit.quota * limit.seconds)
        seconds = self._work / slowest.quota * slowest.seconds
        if self._work <= slowest.quota or seconds <= _A_DAY:
            return ""
        return (
            f"it costs about {self._work / MEGA:.1f} megapixel-steps and your limit is {slowest}, so it takes about "
            f"{seconds / _A_DAY:.1f} days"
        )


async def _each(items: Iterable[NewItem] | AsyncIterable[NewItem]) -> AsyncIterator[NewItem]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
