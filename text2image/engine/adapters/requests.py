"""The adapters that requests name: held in memory while they are drawn, and looked for on disk.

Plain Python, called from the event loop alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

from text2image.core.errors import DeadlineExceeded, FieldViolation, InvalidRequest, Unavailable
from text2image.core.messages import Loading, Request
from text2image.engine.adapters.store import AdapterStore
from text2image.engine.catalogue import Catalogue, Slot
from text2image.engine.memory import MEMORY_RETRY_SECONDS
from text2image.engine.worker import Worker

logger = logging.getLogger(__name__)

# Seconds from one look at the folders of adapters to the next, and from a failure to the next.
LOOK_SECONDS = 2.0
_RETRY_SECONDS = 15.0


class RequestAdapters:
    """What an engine does about adapters, beside its models and its steps."""

    def __init__(
        self,
        worker: Worker,
        limit: int,
        memory_reserve: float,
        beside: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        """`limit` is the most bytes of adapters that are kept in memory; `beside` as `AdapterStore` has it."""
        self.store = AdapterStore(limit, beside, worker.run)
        self._worker = worker
        self._memory_reserve = memory_reserve
        self._task: asyncio.Task[None] | None = None

    def waited_for(self, slot: Slot, request: Request) -> Loading | None:
        """What a request is told that has to wait for adapters."""
        if not request.loras or slot.shelf is None:
            return None
        names = self.store.missing(slot.shelf, request.loras)
        return Loading(f"loading the adapters {', '.join(names)}", None) if names else None

    @asynccontextmanager
    async def held(
        self, catalogue: Catalogue, slot: Slot, request: Request, deadline: float
    ) -> AsyncGenerator[None, None]:
        """Keeps a request's adapters in memory while the context lasts; read beside the steps of others.

        Raises:
            InvalidRequest: the model has no adapters, or they cannot be used.
            Unavailable: there is no room for what they need.
            DeadlineExceeded: they are not there in time.
        """
        if not request.loras:
            yield
            return
        if slot.shelf is None:
            reason = f"are for other models; {slot.name} is drawn without adapters"
            raise InvalidRequest(FieldViolation("loras", reason))
        await self._require_room(slot.shelf.opening.missing)
        async with AsyncExitStack() as stack:
            left = deadline - time.monotonic()
            try:
                async with asyncio.timeout(None if left == math.inf else left):
                    await stack.enter_async_context(self.store.held(slot.shelf, request.loras))
            except TimeoutError:
                raise DeadlineExceeded(
                    "the adapters were not loaded within the time that the request allows"
                ) from None
            catalogue.grew(slot, slot.shelf.opening.nbytes)
            yield

    async def _require_room(self, nbytes: int) -> None:
        """Does nothing unless weights of so many bytes would not fit beside what is there.

        Raises:
            Unavailable: they would not.
        """
        if not nbytes:
            return
        memory = self._worker.memory
        await self._worker.run(lambda: memory.refresh(time.monotonic()))
        reading = memory.reading
        if reading and nbytes > reading.free * (1 - self._memory_reserve):
            raise Unavailable(
                f"the network that adapters need beside the usual one takes {nbytes >> 20} MiB, and "
                f"{reading.free >> 20} are free; T2I_RUNTIME=torch needs no second one",
                reason=Unavailable.FULL,
                retry_after=MEMORY_RETRY_SECONDS,
            )

    def watch(self, catalogue: Catalogue, on_change: Callable[[], None]) -> None:
        """Looks from now on whether adapters have come, gone or changed."""
        self._task = asyncio.create_task(self._keep_looking(catalogue, on_change))

    def stop(self) -> None:
        if self._task:
            self._task.cancel()

    async def _keep_looking(self, catalogue: Catalogue, on_change: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                for slot in list(catalogue.slots.values()):
                    if await _has_changed(slot):
                        on_change()
            except Exception:
                logger.exception("the adapters could not be looked at")
                await asyncio.sleep(_RETRY_SECONDS)


async def _has_changed(slot: Slot) -> bool:
    """Looks at the folder of a model's adapters."""
    folder = slot.shelf.folder if slot.shelf else slot.folder
    if folder is None:
        return False
    loras = await asyncio.to_thread(folder.look)
    if slot.info is None or slot.info.loras == loras:
        return False
    logger.info("model %s has %d adapters", slot.name, len(loras))
    slot.info = replace(slot.info, loras=loras)
    return True
