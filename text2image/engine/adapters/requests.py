"""The adapters and ControlNets that requests name: held in memory while they are drawn, and looked for on disk.

Plain Python, called from the event loop alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from text2image.core.errors import DeadlineExceeded, FieldViolation, InvalidRequest, Unavailable
from text2image.core.messages import Loading, Request
from text2image.engine.adapters.store import AdapterStore, Budget, Named
from text2image.engine.catalogue import Catalogue, Slot
from text2image.engine.memory import MEMORY_RETRY_SECONDS
from text2image.engine.worker import Worker

logger = logging.getLogger(__name__)

# Seconds from one look at the folders of adapters to the next, and from a failure to the next.
LOOK_SECONDS = 2.0
_RETRY_SECONDS = 15.0


# What the fields of a request name.
_NOUNS = {"loras": "adapters", "controls": "ControlNets"}


class Budgets(NamedTuple):
    """Most bytes of adapters, and of ControlNets, that are kept in memory."""

    adapters: int = 1 << 30
    controls: int = 4 << 30


BUDGETS = Budgets()


class RequestAdapters:
    """What an engine does about adapters and ControlNets, beside its models and its steps."""

    def __init__(
        self,
        worker: Worker,
        budgets: Budgets,
        memory_reserve: float,
        beside: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        """`beside` as `AdapterStore` has it."""
        self._stores = [
            AdapterStore(budget, beside, worker.run)
            for budget in (
                Budget("loras", budgets.adapters, "T2I_ADAPTER_MEMORY"),
                Budget("controls", budgets.controls, "T2I_CONTROLNET_MEMORY"),
            )
        ]
        self._worker = worker
        self._memory_reserve = memory_reserve
        self._task: asyncio.Task[None] | None = None

    def names(self, slot: Slot, ready: bool) -> tuple[str, ...]:
        """A model's adapters and ControlNets that are in memory, or else those that are being read."""
        shelves = [(store, slot.shelves.get(store.budget.field)) for store in self._stores]
        return tuple(name for store, shelf in shelves for name in store.names(shelf, ready))

    def waited_for(self, slot: Slot, request: Request) -> Loading | None:
        """What a request is told that has to wait for adapters or ControlNets."""
        waited = []
        for store in self._stores:
            field = store.budget.field
            named: Sequence[Named] = getattr(request, field)
            if named and (shelf := slot.shelves.get(field)):
                names = ", ".join(store.missing(shelf, named))
                waited += [f"the {_NOUNS[field]} {names}"] if names else []
        return Loading(f"loading {' and '.join(waited)}", None) if waited else None

    def forget(self, slot: Slot) -> None:
        """Lets all go of a model that leaves."""
        for store in self._stores:
            if shelf := slot.shelves.get(store.budget.field):
                store.forget(shelf)

    @asynccontextmanager
    async def held(
        self, catalogue: Catalogue, slot: Slot, request: Request, deadline: float
    ) -> AsyncGenerator[None, None]:
        """Keeps what a request names in memory while the context lasts; read beside the steps of others.

        Raises:
            InvalidRequest: the model has no such thing, or it cannot be used.
            Unavailable: there is no room for what that needs.
            DeadlineExceeded: it is not there in time.
        """
        async with AsyncExitStack() as stack:
            # Always in this order, so that no two requests wait for what the other has.
            for store in self._stores:
                if getattr(request, store.budget.field):
                    await self._hold(stack, store, slot, request, deadline)
            for shelf in slot.shelves.values():
                catalogue.grew(slot, shelf.opening.nbytes)
            yield

    async def _hold(
        self,
        stack: AsyncExitStack,
        store: AdapterStore,
        slot: Slot,
        request: Request,
        deadline: float,
    ) -> None:
        """Keeps what a store has of a request until the stack ends; raises as `held` does."""
        field = store.budget.field
        noun, shelf = _NOUNS[field], slot.shelves.get(field)
        if shelf is None:
            reason = f"are for other models; {slot.name} is drawn without {noun}"
            raise InvalidRequest(FieldViolation(field, reason))
        await self._require_room(
            shelf.opening.missing, store.growth(shelf, getattr(request, field))
        )
        left = deadline - time.monotonic()
        try:
            async with asyncio.timeout(None if left == math.inf else left):
                await stack.enter_async_context(store.held(shelf, getattr(request, field)))
        except TimeoutError:
            raise DeadlineExceeded(
                f"the {noun} were not loaded within the time that the request allows"
            ) from None

    async def _require_room(self, network: int, growth: int) -> None:
        """Does nothing unless so many bytes of weights would not fit beside what is there.

        Args:
            network: of the open network, if it is yet to be loaded.
            growth: of what the request names.

        Raises:
            Unavailable: they would not.
        """
        nbytes = network + growth
        if not nbytes:
            return
        memory = self._worker.memory
        await self._worker.run(lambda: memory.refresh(time.monotonic()))
        reading = memory.reading
        if reading and nbytes > reading.free * (1 - self._memory_reserve):
            hint = "; T2I_RUNTIME=torch needs no second network" if network else ""
            raise Unavailable(
                f"the adapters or ControlNets that it names need {nbytes >> 20} MiB, and {reading.free >> 20} "
                f"are free{hint}",
                reason=Unavailable.FULL,
                retry_after=MEMORY_RETRY_SECONDS,
            )

    def watch(self, catalogue: Catalogue, on_change: Callable[[], None]) -> None:
        """Looks from now on whether adapters or ControlNets have come, gone or changed."""
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
    """Looks at the folders of a model's adapters and ControlNets."""
    loaded = {field: shelf.folder for field, shelf in slot.shelves.items()}
    folders = loaded or dict(slot.folders)
    found = {field: await asyncio.to_thread(folder.look) for field, folder in folders.items()}
    changed: dict[str, Any] = {
        field: there
        for field, there in found.items()
        if slot.info is not None and getattr(slot.info, field) != there
    }
    if slot.info is None or not changed:
        return False
    for field, there in changed.items():
        logger.info("model %s has %d %s", slot.name, len(there), _NOUNS[field])
    slot.info = replace(slot.info, **changed)
    return True
