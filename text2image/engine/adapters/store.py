"""Which adapters are in memory: read when a request needs them, beside others' steps, and kept while there is room.

Plain Python, called from the event loop alone; what it keeps is read in threads, and put into a model and taken out by
the engine's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.messages import LoraInfo, LoraWeight

_MIB = 1 << 20


class Folder(Protocol):
    """The adapters of one model on disk."""

    def look(self) -> tuple[LoraInfo, ...]:
        """What there is now; in any thread."""
        ...


class Opening(Protocol):
    """The network that adapters need, beside the one that a model is drawn with else.

    Attributes:
        nbytes: bytes of weights that it has taken so far; missing: that it has yet to take.
    """

    @property
    def nbytes(self) -> int: ...

    @property
    def missing(self) -> int: ...


class Shelf(Protocol):
    """The adapters of one model."""

    @property
    def folder(self) -> Folder: ...

    @property
    def opening(self) -> Opening: ...

    def size_of(self, lora: LoraWeight) -> int:
        """Bytes that one takes; 0 if it is gone."""
        ...

    def read(self, lora: LoraWeight) -> Any:
        """Reads one, in any thread.

        Raises:
            InvalidRequest: it cannot be drawn with.
        """
        ...

    def put(self, lora: LoraWeight, adapter: Any) -> None:
        """Takes in what was read; in the engine's thread."""
        ...

    def drop(self, lora: LoraWeight) -> None:
        """Lets one go that nobody uses; in the engine's thread."""
        ...


@dataclass(slots=True, eq=False)
class _Kept:
    """An adapter in memory, or on its way there: `ready` ends when it is there, or could not be read.

    Attributes:
        users: requests that need it.
        used: when it was used last, in the order of such events.
    """

    shelf: Shelf
    lora: LoraWeight
    size: int
    ready: asyncio.Future[None]
    users: int = 0
    used: int = 0


class AdapterStore:
    """All models' adapters within one budget; those that were used least recently leave first."""

    def __init__(
        self,
        limit: int,
        beside: Callable[[Callable[[], Any]], Awaitable[Any]],
        in_engine: Callable[[Callable[[], None]], Awaitable[None]],
    ) -> None:
        """
        Args:
            limit: bytes of adapters that are kept.
            beside: does slow work in a thread of its own.
            in_engine: does work in the engine's thread between two ticks, in the order of the calls.
        """
        self._limit = limit
        self._beside = beside
        self._in_engine = in_engine
        self._kept: dict[tuple[int, str, str], _Kept] = {}
        self._order = count(1)
        self._freed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def missing(self, shelf: Shelf, loras: Sequence[LoraWeight]) -> list[str]:
        """The names of those that a request would wait for."""
        return [each.name for each in loras if not self._is_ready(_key(shelf, each))]

    def names(self, shelf: Shelf | None, ready: bool) -> tuple[str, ...]:
        """Of one model's adapters those that are in memory, or else those that are being read, sorted."""
        kept = (each for each in self._kept.values() if each.shelf is shelf)
        return tuple(sorted({each.lora.name for each in kept if each.ready.done() is ready}))

    def _is_ready(self, key: tuple[int, str, str]) -> bool:
        return key in self._kept and self._kept[key].ready.done()

    @asynccontextmanager
    async def held(self, shelf: Shelf, loras: Sequence[LoraWeight]) -> AsyncGenerator[None, None]:
        """Has all of a request's adapters in memory while the context lasts.

        Raises:
            InvalidRequest: one cannot be read, or all take more than the limit.
        """
        sizes = {_key(shelf, each): shelf.size_of(each) for each in loras}
        if sum(sizes.values()) > self._limit:
            reason = (
                f"take {sum(sizes.values()) / _MIB:.0f} MiB of memory together, and "
                f"T2I_ADAPTER_MEMORY is {self._limit / _MIB:.0f}"
            )
            raise InvalidRequest(FieldViolation("loras", reason))
        while not self._make_room(sizes):
            freed = self._freed
            await freed.wait()
        # All or none, so that no two requests wait for what the other has.
        kept = [self._take(shelf, each, sizes[_key(shelf, each)]) for each in loras]
        try:
            for each in kept:
                # Others may wait for the same, whoever gives up.
                await asyncio.shield(each.ready)
            yield
        finally:
            for each in kept:
                self._let_go(each)

    def _make_room(self, sizes: dict[tuple[int, str, str], int]) -> bool:
        """Whether adapters of these sizes fit, after those have left that nobody uses."""
        new = sum(size for key, size in sizes.items() if key not in self._kept)
        there = sum(each.size for each in self._kept.values())
        idle = sorted(
            (
                each
                for key, each in self._kept.items()
                if not each.users and each.ready.done() and key not in sizes
            ),
            key=lambda each: each.used,
        )
        if there + new - sum(each.size for each in idle) > self._limit:
            return False
        for each in idle:
            if there + new <= self._limit:
                break
            there -= each.size
            self._drop(each)
        return True

    def _take(self, shelf: Shelf, lora: LoraWeight, size: int) -> _Kept:
        key = _key(shelf, lora)
        if key not in self._kept:
            ready = asyncio.get_running_loop().create_future()
            self._kept[key] = _Kept(shelf, lora, size, ready)
            self._spawn(self._read(self._kept[key]))
        kept = self._kept[key]
        kept.users += 1
        kept.used = next(self._order)
        return kept

    def _let_go(self, kept: _Kept) -> None:
        kept.users -= 1
        if not kept.users:
            freed, self._freed = self._freed, asyncio.Event()
            freed.set()

    async def _read(self, kept: _Kept) -> None:
        try:
            adapter = await self._beside(lambda: kept.shelf.read(kept.lora))
            await self._in_engine(lambda: kept.shelf.put(kept.lora, adapter))
        except Exception as error:
            # The next request tries again: the file may be another one by then.
            self._kept.pop(_key(kept.shelf, kept.lora), None)
            kept.ready.set_exception(error)
            # Nobody need be there any more to hear of it.
            kept.ready.exception()
        else:
            kept.ready.set_result(None)

    def _drop(self, kept: _Kept) -> None:
        del self._kept[_key(kept.shelf, kept.lora)]

        async def drop() -> None:
            await self._in_engine(lambda: kept.shelf.drop(kept.lora))

        self._spawn(drop())

    def forget(self, shelf: Shelf) -> None:
        """Takes note that a model has left, with its adapters."""
        for key in [key for key, kept in self._kept.items() if kept.shelf is shelf]:
            del self._kept[key]

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _key(shelf: Shelf, lora: LoraWeight) -> tuple[int, str, str]:
    return id(shelf), lora.name, lora.hash
