"""What is done for jobs beside drawing: time passes, old ones go, ends are told, and the dead are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection

from text2image.core.errors import Unavailable
from text2image.jobs import control, reading
from text2image.jobs.database import Database
from text2image.jobs.liveness import LOOK_SECONDS, Liveness
from text2image.jobs.pictures import PictureFolder
from text2image.jobs.records import Again, Dead, EndedHandler, WebhookState
from text2image.jobs.worker import Worker

logger = logging.getLogger(__name__)

# Seconds between two looks at what was cancelled elsewhere, and at deadlines.
TICK_SECONDS = 1.0
# Seconds after which ended jobs have grown older, where no deadline is waited for.
_AGEING_SECONDS = 60.0
_HANDLER_FAILED_SECONDS = 60.0


class Keeper:
    """Use it from one event loop; `changed` is called where jobs may have changed."""

    def __init__(
        self,
        database: Database,
        pictures: PictureFolder,
        liveness: Liveness,
        worker: Worker,
        changed: Callable[[], None],
        *,
        keep_seconds: float,
        keep_bytes: int,
    ) -> None:
        self._database = database
        self._pictures = pictures
        self._liveness = liveness
        self._worker = worker
        self._changed = changed
        self._keep = (keep_seconds, keep_bytes)
        self.handler: EndedHandler | None = None
        self._telling: dict[int, asyncio.Task[None]] = {}
        # By job: when its end is told again, in this process's time.
        self._due: dict[int, float] = {}
        self._aged = time.monotonic()
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Has it look at once."""
        self._wake.set()

    def hurry(self, number: int) -> None:
        """Forgets how long was to be waited before a job's end is told again."""
        self._due.pop(number, None)

    async def run(self) -> None:
        """Looks until it is cancelled."""
        looked = -LOOK_SECONDS
        while True:
            self._wake.clear()
            try:
                if time.monotonic() - looked >= LOOK_SECONDS:
                    if await self._liveness.look():
                        self._worker.wake()
                    looked = time.monotonic()
                await self._worker.revoke()
                await self._lead()
                await self._tell()
            except (Unavailable, OSError):
                # The database has told of it; a folder that cannot be emptied now may be later.
                pass
            except Exception:
                logger.exception("looking after jobs")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TICK_SECONDS)

    async def close(self) -> None:
        """Ends the telling; whoever comes next tells again."""
        for task in self._telling.values():
            task.cancel()
        await asyncio.gather(*self._telling.values(), return_exceptions=True)

    async def _lead(self) -> None:
        now = time.monotonic()
        if not self._liveness.leads:
            # The time until now is another's to count.
            self._aged = now
            return
        passed = now - self._aged
        if await self._database.run(self._age, passed):
            self._aged = now
            self._changed()
        for number, job_id in await self._database.run(control.doomed):
            await asyncio.to_thread(self._pictures.remove_job, job_id)
            await self._database.run(control.forget, number)

    def _age(self, connection: Connection, passed: float) -> bool:
        if passed < _AGEING_SECONDS and not control.has_deadlines(connection):
            return False
        control.pass_time(connection, passed, time.time())
        control.expire(connection, *self._keep)
        return True

    async def _tell(self) -> None:
        if self.handler is None or not self._liveness.id:
            return
        numbers = await self._database.run(control.untold, self._liveness.id)
        now = time.monotonic()
        self._due = {number: due for number, due in self._due.items() if number in numbers}
        for number in numbers:
            if number not in self._telling and self._due.get(number, now) <= now:
                task = asyncio.create_task(self._tell_of(number, self.handler))
                self._telling[number] = task
                task.add_done_callback(partial(self._told, number))

    def _told(self, number: int, task: asyncio.Task[None]) -> None:
        del self._telling[number]

    async def _tell_of(self, number: int, handler: EndedHandler) -> None:
        with contextlib.suppress(Unavailable):
            job = await self._database.run(reading.by_number, number, time.time(), self._keep[0])
            if job is None or job.webhook.state is not WebhookState.PENDING:
                return
            try:
                answer = await handler(job)
            except Exception as error:
                logger.exception("telling of the end of %s", job.id)
                answer = Again(_HANDLER_FAILED_SECONDS, f"{type(error).__name__}: {error}")
            state, why = WebhookState.DELIVERED, ""
            if isinstance(answer, Again):
                state, why = WebhookState.PENDING, answer.error
                self._due[number] = time.monotonic() + answer.seconds
            elif isinstance(answer, Dead):
                state, why = WebhookState.DEAD, answer.error
            await self._database.run(control.told, number, state, why)
            self._changed()
