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
from typing import Any, NamedTuple, Protocol

from text2image.core.errors import FieldViolation, InvalidRequest

_MIB = 1 << 20


class Named(Protocol):
    """An adapter or a ControlNet as a request names it; `hash` is that of its file."""

    @property
    def name(self) -> str: ...

    @property
    def hash(self) -> str: ...


class Folder(Protocol):
    """The adapters of one model on disk, or its ControlNets."""

    def look(self) -> tuple[Any, ...]:
        """What there is now, as `ModelInfo` tells of it; in any thread."""
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
    """The adapters of one model, or its ControlNets."""

    @property
    def folder(self) -> Folder: ...

    @property
    def opening(self) -> Opening: ...

    def size_of(self, named: Named) -> int:
        """Bytes that one takes; 0 if it is gone."""
        ...

    def read(self, named: Named) -> Any:
        """Reads one, in any thread.

        Raises:
            InvalidRequest: it cannot be drawn with.
        """
        ...

    def put(self, named: Named, adapter: Any) -> None:
        """Takes in what was read; in the engine's thread."""
        ...

    def drop(self, named: Named) -> None:
        """Lets one go that nobody uses; in the engine's thread."""
        ...


def shelves_of(model: Any) -> dict[str, Shelf]:
    """What a loaded model has, by the field of requests that names it."""
    shelves = {
        "loras": getattr(model, "adapters", None),
        "controls": getattr(model, "controls", None),
    }
    return {field: shelf for field, shelf in shelves.items() if shelf is not None}


class Budget(NamedTuple):
    """What a store keeps: the field of requests that names it, most bytes of it, and the setting that says so."""

    field: str
    limit: int
    setting: str


@dataclass(slots=True, eq=False)
class _Kept:
    """An adapter in memory, or on its way there: `ready` ends when it is there, or could not be read.

    Attributes:
        users: requests that need it.
        used: when it was used last, in the order of such events.
    """

    shelf: Shelf
    named: Named
    size: int
    ready: asyncio.Future[None]
    users: int = 0
    used: int = 0


class AdapterStore:
    """All models' adapters, or their ControlNets, within one budget; those used least recently leave first."""

    def __init__(
        self,
        budget: Budget,
        beside: Callable[[Callable[[], Any]], Awaitable[Any]],
        in_engine: Callable[[Callable[[], None]], Awaitable[None]],
    ) -> None:
        """
        Args:
            beside: does slow work in a thread of its own.
            in_engine: does work in the engine's thread between two ticks, in the order of the calls.
        """
        self.budget = budget
        self._limit = budget.limit
        self._beside = beside
        self._in_engine = in_engine
        self._kept: dict[tuple[int, str, str], _Kept] = {}
        self._order = count(1)
        self._freed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def missing(self, shelf: Shelf, named: Sequence[Named]) -> list[str]:
        """The names of those that a request would wait for."""
        return [each.name for each in named if not self._is_ready(_key(shelf, each))]

    def growth(self, shelf: Shelf, named: Sequence[Named]) -> int:
        """Bytes by which what is kept grows if these are held too."""
        sizes = {_key(shelf, each): shelf.size_of(each) for each in named}
        new = sum(size for key, size in sizes.items() if key not in self._kept)
        return max(0, min(new, self._limit - sum(each.size for each in self._kept.values())))

    def names(self, shelf: Shelf | None, ready: bool) -> tuple[str, ...]:
        """Of one model's those that are in memory, or else those that are being read, sorted."""
        kept = (each for each in self._kept.values() if each.shelf is shelf)
        return tuple(sorted({each.named.name for each in kept if each.ready.done() is ready}))

    def _is_ready(self, key: tuple[int, str, str]) -> bool:
        return key in self._kept and self._kept[key].ready.done()

    @asynccontextmanager
    async def held(self, shelf: Shelf, named: Sequence[Named]) -> AsyncGenerator[None, None]:
        """Has all of a request's adapters in memory while the context lasts.

        Raises:
            InvalidRequest: one cannot be read, or all take more than the limit.
        """
        sizes = {_key(shelf, each): shelf.size_of(each) for each in named}
        if sum(sizes.values()) > self._limit:
            reason = (
                f"take {sum(sizes.values()) / _MIB:.0f} MiB of memory together, and "
                f"{self.budget.setting} is {self._limit / _MIB:.0f}"
            )
            raise InvalidRequest(FieldViolation(self.budget.field, reason))
        while not self._make_room(sizes):
            freed = self._freed
            await freed.wait()
        # All or none, so that no two requests wait for what the other has.
        kept = [self._take(shelf, each, sizes[_key(shelf, each)]) for each in named]
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

    def _take(self, shelf: Shelf, named: Named, size: int) -> _Kept:
        key = _key(shelf, named)
        if key not in self._kept:
            ready = asyncio.get_running_loop().create_future()
            self._kept[key] = _Kept(shelf, named, size, ready)
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
            adapter = await self._beside(lambda: kept.shelf.read(kept.named))
            await self._in_engine(lambda: kept.shelf.put(kept.named, adapter))
        except Exception as error:
            # The next request tries again: the file may be another one by then.
            self._kept.pop(_key(kept.shelf, kept.named), None)
            kept.ready.set_exception(error)
            # Nobody need be there any more to hear of it.
            kept.ready.exception()
        else:
            kept.ready.set_result(None)
            if self._kept.get(_key(kept.shelf, kept.named)) is not kept:
                # Its model has left meanwhile.
                await self._in_engine(lambda: kept.shelf.drop(kept.named))

    def _drop(self, kept: _Kept) -> None:
        del self._kept[_key(kept.shelf, kept.named)]

        async def drop() -> None:
            await self._in_engine(lambda: kept.shelf.drop(kept.named))

        self._spawn(drop())

    def forget(self, shelf: Shelf) -> None:
        """Lets all go of a model that leaves, which may be kept elsewhere without them."""
        for kept in [each for each in self._kept.values() if each.shelf is shelf]:
            if kept.ready.done():
                self._drop(kept)
            else:
                del self._kept[_key(shelf, kept.named)]

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _key(shelf: Shelf, named: Named) -> tuple[int, str, str]:
    return id(shelf), named.name, named.hash
