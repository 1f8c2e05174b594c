"""Loads and unloads an engine's models as requests need them, beside its work, and keeps track of which there are."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread
from typing import Protocol, TypeVar

from text2image.core.catalogue import Entry
from text2image.core.messages import ModelInfo, ModelState
from text2image.engine import failures
from text2image.engine.adapters.store import Folder, shelves_of
from text2image.engine.catalogue import Catalogue, Slot
from text2image.engine.models.contract import DeviceLost, Model, OutOfMemory
from text2image.engine.worker import Report, Worker

logger = logging.getLogger(__name__)

# Seconds from one look at the folder of models to the next, and from a failure to the next try.
LOOK_SECONDS = 2.0
RETRY_SECONDS = 15.0
# While a model is loaded, Python changes between threads so often, in seconds: a step calls into torch a thousand times
# and waits for its turn after each.
SWITCH_SECONDS = 1e-4

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Inspected:
    """What is known of a model before it is loaded: what it can do, and the bytes of its weights as they are loaded.

    `folders` are those of its adapters and ControlNets, by the field of requests that names them.
    """

    info: ModelInfo
    size: int
    folders: Mapping[str, Folder] = field(default_factory=dict)


class Host(Protocol):
    """The host's memory, where models wait that have left a device of its own memory. All is slow and needs torch."""

    def room(self, held: int) -> int:
        """Bytes that models may take there, the `held` ones included; 0 where there is nothing to be gained."""
        ...

    def park(self, model: Model) -> bool:
        """Takes a model's weights there; False if that cannot be done, and the model is to be dropped."""
        ...

    def restore(self, model: Model) -> Model:
        """Brings them back.

        Raises:
            OutOfMemory: there is no room for it.
        """
        ...


class Source(Protocol):
    """Where models come from. All is slow, may be called in any thread, and but for `find` needs torch.

    Attributes:
        default: what the engine loads first, under the name that it gets.
        host: where models wait that leave the device.
    """

    default: Entry
    host: Host

    def find(self) -> Mapping[str, Entry]:
        """Those that there are now, by name.

        Raises:
            OSError, ValueError: that cannot be told.
        """
        ...

    def inspect(self, entry: Entry) -> Inspected:
        """What a model is, from its configuration, under its name here.

        Raises:
            OSError, ValueError: it cannot be drawn with; the text says why.
        """
        ...

    def load(self, entry: Entry, report: Report) -> Model:
        """Loads a model, whose `info` then has the entry's name.

        Raises:
            OSError, ValueError: it cannot be loaded; the text says why.
            OutOfMemory: there is no room for it.
        """
        ...


class ModelManager:
    """The one task that changes which models are loaded.

    `on_change` is called after each change of the catalogue, `on_unload` before a model leaves.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        source: Source,
        worker: Worker,
        memory_reserve: float,
        on_change: Callable[[], None],
        on_unload: Callable[[Slot], None],
    ) -> None:
        self._catalogue = catalogue
        self._source = source
        self._worker = worker
        self._memory_reserve = memory_reserve
        self._on_change = on_change
        self._on_unload = on_unload
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # Models whose weights are in the host's memory, by name.
        self._parked: dict[str, Model] = {}

    def start(self) -> None:
        """Begins once the first model is loaded."""
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        if self._task:
            self._task.cancel()

    def wake(self) -> None:
        """A request came for a model that is not open, or one has ended."""
        self._woken.set()

    async def _run(self) -> None:
        looked = float("-inf")
        while True:
            try:
                self._woken.clear()
                if time.monotonic() - looked >= LOOK_SECONDS:
                    looked = time.monotonic()
                    await self._look()
                if not await self._turn():
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._woken.wait()
            except TimeoutError:
                continue
            except Exception:
                logger.exception("the catalogue of models could not be kept")
                await asyncio.sleep(RETRY_SECONDS)

    async def _look(self) -> None:
        """Finds out which models there are now."""
        try:
            entries = await asyncio.to_thread(self._source.find)
        except (OSError, ValueError) as error:
            logger.warning("the models are as they were: %s", error)
            return
        before = set(self._catalogue.slots)
        self._catalogue.update(entries)
        now = set(self._catalogue.slots)
        for name in sorted(now - before):
            logger.info("model %s has come", name)
        for name in sorted(before - now):
            logger.info("model %s has gone", name)
        self._on_change()

    async def _turn(self) -> bool:
        """Does the next thing that is to be done; whether there was one."""
        catalogue = self._catalogue
        await self._drop_parked()
        if slot := catalogue.leaves():
            await self._unload(slot)
            return True
        if slot := catalogue.unknown(time.monotonic()):
            await self._inspect(slot)
            return True
        if not (wanted := catalogue.wanted()):
            catalogue.make_room(None)
            return False
        if catalogue.make_room(wanted, await self._free()):
            await self._load(wanted)
            return True
        self._on_change()
        return catalogue.leaves() is not None

    async def _free(self) -> int | None:
        """Bytes that the device has left for a model."""
        memory = self._worker.memory
        # A model may have left a moment ago.
        await self._worker.run(lambda: memory.refresh(time.monotonic(), anew=True))
        reading = memory.reading
        return None if reading is None else int(reading.free * (1 - self._memory_reserve))

    async def _unload(self, slot: Slot) -> None:
        logger.info("model %s is unloaded", slot.name)
        slot.state = ModelState.IDLE
        self._on_unload(slot)
        host = self._source.host
        held = sum(each.size for each in self._catalogue.slots.values() if each.parked)
        room = await asyncio.to_thread(host.room, held)
        keep = host.park if self._catalogue.park(slot, room) else None
        # First, since those that make room for it have left.
        await self._drop_parked()
        model = await self._worker.let_go(slot.name, keep)
        slot.parked = model is not None
        if model is not None:
            self._parked[slot.name] = model
            logger.info("model %s waits in the host's memory", slot.name)
        self._catalogue.left(slot)
        self._on_change()

    async def _drop_parked(self) -> None:
        """Lets go of models that are no longer to wait in the host's memory."""
        slots = self._catalogue.slots
        gone = [name for name in self._parked if name not in slots or not slots[name].parked]
        for name in gone:
            del self._parked[name]
        if gone:
            # Of modules that hold each other, memory is free only then.
            await asyncio.to_thread(gc.collect)

    async def _inspect(self, slot: Slot) -> None:
        entry = slot.entry
        try:
            inspected = await beside(lambda: self._source.inspect(entry))
        except Exception as error:
            if slot.is_loaded:
                slot.retry_at = time.monotonic() + RETRY_SECONDS
                logger.warning("model %s is drawn with as it was: %s", slot.name, error)
            else:
                self._fail(slot, error)
        else:
            slot.info, slot.size = inspected.info, max(1, inspected.size) + slot.beside
            slot.folders = inspected.folders
            if not slot.is_loaded:
                slot.state, slot.detail = ModelState.IDLE, ""
        self._on_change()

    async def _load(self, slot: Slot) -> None:
        entry, started = slot.entry, time.monotonic()
        slot.state, slot.detail, slot.began = ModelState.LOADING, "loading", started
        slot.wished = False
        self._on_change()
        try:
            if not self._catalogue.fits_alone(slot):
                raise ValueError(
                    f"its weights take {slot.size} bytes, and T2I_MODEL_MEMORY is {self._catalogue.limit}"
                )
            parked = self._parked.pop(slot.name, None)
            model = await beside(lambda: self._brought(slot, entry, parked))
            slot.detail = "measuring"
            await self._worker.take_in(slot.name, model)
        except OutOfMemory as error:
            if not slot.crowded:
                # Once more, without one of the others.
                slot.state, slot.crowded = ModelState.IDLE, True
                return
            self._fail(slot, error)
        except Exception as error:
            self._fail(slot, error)
        else:
            slot.info = model.info
            slot.shelves = shelves_of(model)
            if slot.parked:
                slot.returned = time.monotonic() - started
            else:
                slot.took = time.monotonic() - started
            slot.state, slot.detail, slot.why, slot.crowded = ModelState.LOADED, "", "", False
            logger.info("model %s loaded in %.1f s", slot.name, time.monotonic() - started)
        finally:
            slot.parked = False
        self._on_change()

    def _brought(self, slot: Slot, entry: Entry, parked: Model | None) -> Model:
        """A model from the host's memory, or from disk. Called in the loading thread."""
        if parked is not None:
            _note(slot, "bringing it back from the host's memory")
            return self._source.host.restore(parked)
        return self._source.load(entry, lambda line: _note(slot, line))

    def _fail(self, slot: Slot, error: Exception) -> None:
        if isinstance(error, DeviceLost):
            raise error
        why = failures.why_not_loaded(error)
        if slot.why != why:
            logger.warning("model %s could not be loaded: %s", slot.name, why)
        slot.state, slot.detail, slot.why, slot.crowded = ModelState.FAILED, why, why, False
        slot.retry_at = time.monotonic() + RETRY_SECONDS


def _note(slot: Slot, line: str) -> None:
    """Called in the loading thread: one assignment, which readers in the event loop see whole."""
    slot.detail = line
    logger.info("model %s: %s", slot.name, line)


async def beside(work: Callable[[], R]) -> R:
    """Does slow work in a thread that ends with the process, whatever it is at."""
    done: Future[R] = Future()

    def run() -> None:
        done.set_running_or_notify_cancel()
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        Thread(target=run, name="loading", daemon=True).start()
        return await asyncio.wrap_future(done)
    finally:
        sys.setswitchinterval(before)
