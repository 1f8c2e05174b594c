"""Adapters in memory: read once, within the budget, never let go while a request needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.messages import LoraWeight
from text2image.engine.adapters.store import AdapterStore, Budget

A, B, C = (LoraWeight(name, 1.0, name * 2) for name in "abc")


class Shelf:
    """Adapters of 10 bytes each; `there` are those that a model has now."""

    def __init__(self) -> None:
        self.there: list[str] = []
        self.reads: list[str] = []
        self.broken = False

    def size_of(self, lora: LoraWeight) -> int:
        return 10

    def read(self, lora: LoraWeight) -> str:
        self.reads.append(lora.name)
        if self.broken:
            raise InvalidRequest(FieldViolation("loras", "is broken"))
        return lora.name

    def put(self, lora: LoraWeight, adapter: Any) -> None:
        self.there.append(adapter)

    def drop(self, lora: LoraWeight) -> None:
        self.there.remove(lora.name)


def store(limit: int) -> AdapterStore:
    async def beside(work: Callable[[], Any]) -> Any:
        await asyncio.sleep(0)
        return work()

    async def in_engine(work: Callable[[], None]) -> None:
        await asyncio.sleep(0)
        work()

    return AdapterStore(Budget("loras", limit, "T2I_ADAPTER_MEMORY"), beside, in_engine)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_requests_share_what_was_read_once() -> None:
    kept, shelf = store(100), Shelf()
    assert kept.missing(shelf, [A, B]) == ["a", "b"]

    async def use() -> None:
        async with kept.held(shelf, [A, B]):
            assert sorted(shelf.there) == ["a", "b"]

    await asyncio.gather(use(), use(), use())
    await use()
    assert sorted(shelf.reads) == ["a", "b"]
    assert kept.missing(shelf, [A, B, C]) == ["c"]


async def test_what_was_used_least_recently_leaves_for_the_next() -> None:
    kept, shelf = store(20), Shelf()
    for lora in (A, B, A, C):
        async with kept.held(shelf, [lora]):
            pass
    await settled()
    assert sorted(shelf.there) == ["a", "c"]


async def test_what_is_kept_grows_by_what_is_new_up_to_the_budget() -> None:
    kept, shelf = store(25), Shelf()
    assert kept.growth(shelf, [A, B, A]) == 20
    await _use(kept, shelf, [A, B])
    # For what comes then, another one leaves.
    assert [kept.growth(shelf, named) for named in ([A], [C], [A, C])] == [0, 5, 5]


async def test_nothing_leaves_under_a_request_and_who_has_no_room_waits() -> None:
    kept, shelf = store(20), Shelf()
    async with AsyncExitStack() as first:
        await first.enter_async_context(kept.held(shelf, [A, B]))
        second = asyncio.create_task(_use(kept, shelf, [C, A]))
        await settled()
        assert not second.done()
        assert sorted(shelf.there) == ["a", "b"]
    await second
    await settled()
    assert sorted(shelf.there) == ["a", "c"]


async def _use(kept: AdapterStore, shelf: Shelf, loras: list[LoraWeight]) -> None:
    async with kept.held(shelf, loras):
        assert {each.name for each in loras} <= {*shelf.there}


async def test_more_than_the_budget_is_refused_at_once() -> None:
    with pytest.raises(InvalidRequest, match="T2I_ADAPTER_MEMORY"):
        await _use(store(20), Shelf(), [A, B, C])


async def test_a_failure_is_told_to_all_who_wait_and_tried_again_by_the_next() -> None:
    kept, shelf = store(20), Shelf()
    shelf.broken = True
    told = await asyncio.gather(*(_use(kept, shelf, [A]) for _ in range(2)), return_exceptions=True)
    assert all(isinstance(each, InvalidRequest) for each in told)
    assert shelf.reads == ["a"]
    shelf.broken = False
    await _use(kept, shelf, [A])


async def test_who_gives_up_takes_nothing_from_others() -> None:
    kept, shelf = store(20), Shelf()
    leaving = asyncio.create_task(_use(kept, shelf, [A]))
    staying = asyncio.create_task(_use(kept, shelf, [A]))
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    assert shelf.there == ["a"]
    async with kept.held(shelf, [B, C]):
        await settled()
        assert sorted(shelf.there) == ["b", "c"]


async def test_a_model_that_leaves_keeps_none_of_its_adapters() -> None:
    kept, shelf = store(20), Shelf()
    await _use(kept, shelf, [A])
    reading = asyncio.create_task(_use(kept, shelf, [B]))
    await asyncio.sleep(0)
    kept.forget(shelf)
    assert kept.missing(shelf, [A, B]) == ["a", "b"]
    await asyncio.gather(reading, return_exceptions=True)
    await settled()
    # Nor what came while it left.
    assert shelf.there == []


async def test_it_tells_which_are_in_memory_and_which_are_on_their_way() -> None:
    kept, shelf, other = store(30), Shelf(), Shelf()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(kept.held(shelf, [B, A]))
        reading = asyncio.ensure_future(stack.enter_async_context(kept.held(shelf, [C])))
        await asyncio.sleep(0)
        assert (kept.names(shelf, True), kept.names(shelf, False)) == (("a", "b"), ("c",))
        await reading
    assert (kept.names(shelf, True), kept.names(shelf, False)) == (("a", "b", "c"), ())
    assert kept.names(other, True) == kept.names(None, True) == ()
