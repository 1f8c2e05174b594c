"""What waits for a model that has to be loaded, and what is drawn meanwhile, by a real engine."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.doubles import TimedModel, make_info, make_request
from tests.unit.engine.test_catalogue import NAMES, entry
from tests.unit.engine.test_engine import collect, until
from text2image.core.catalogue import Entry
from text2image.core.errors import DeadlineExceeded, ModelNotFound, Unavailable
from text2image.core.messages import (
    Completed,
    GeneratedImage,
    Loading,
    ModelState,
    Queued,
    State,
    StreamOptions,
)
from text2image.engine import manager
from text2image.engine.catalogue import MOST_WAITING
from text2image.engine.engine import Engine
from text2image.engine.manager import Inspected
from text2image.engine.models.contract import OutOfMemory


@dataclass
class Attic:
    """Room in the host's memory for so many bytes; what was put there, and what came back."""

    bytes: int = 0
    parked: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    refuses: bool = False

    def room(self, held: int) -> int:
        return self.bytes

    def park(self, model: Any) -> bool:
        if not self.refuses:
            self.parked.append(model.info.id)
        return not self.refuses

    def restore(self, model: Any) -> Any:
        self.restored.append(model.info.id)
        return model


@dataclass
class Shelf:
    """Models without torch, whose loading the test may hold up or let fail."""

    entries: dict[str, Entry] = field(default_factory=lambda: {name: entry(name) for name in NAMES})
    size: int = 10
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    loads: Counter[str] = field(default_factory=Counter)
    models: dict[str, TimedModel] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)
    default: Entry = field(default_factory=lambda: entry("first"))
    host: Attic = field(default_factory=Attic)

    def __post_init__(self) -> None:
        self.gate.set()

    def find(self) -> Mapping[str, Entry]:
        return dict(self.entries)

    def inspect(self, entry: Entry) -> Inspected:
        return Inspected(make_info(id=entry.name, revision=str(entry.stamp)), self.size)

    def load(self, entry: Entry, report: Callable[[str], None]) -> TimedModel:
        report("reading weights")
        self.loads[entry.name] += 1
        assert self.gate.wait(30)
        if failures := self.failures.get(entry.name):
            raise failures.pop(0)
        model = TimedModel(info=make_info(id=entry.name, revision=str(entry.stamp)))
        self.models[entry.name] = model
        return model


@asynccontextmanager
async def running(shelf: Shelf, model_memory: int | None = None) -> AsyncIterator[Engine]:
    first = shelf.models["first"] = TimedModel(info=make_info(id="first"))
    engine = Engine(lambda report: first, source=shelf, model_memory=model_memory)
    engine.start()
    await until(lambda: engine.status.state is State.READY)
    await until(lambda: len(engine.status.models) == len(shelf.entries))
    yield engine
    await engine.stop()


def state_of(engine: Engine, name: str) -> ModelState | None:
    return next((each.state for each in engine.status.models if each.name == name), None)


async def test_a_request_for_a_model_that_is_not_loaded_waits_and_is_told_so() -> None:
    shelf = Shelf()
    async with running(shelf) as engine:
        assert [each.name for each in engine.status.models] == list(NAMES)
        assert state_of(engine, "second") is ModelState.IDLE
        events = await collect(engine, make_request(model="second", seed=7))
        kinds = [type(event) for event in events]
        assert kinds[0] is Loading
        assert kinds[-2:] == [GeneratedImage, Completed]
        assert kinds.index(Queued) > kinds.index(Loading)
        assert state_of(engine, "second") is ModelState.LOADED
        assert shelf.models["second"].batches
        again = await collect(engine, make_request(model="second"))
        assert type(again[0]) is Queued
        assert shelf.loads == {"second": 1}


async def test_models_step_in_batches_of_their_own_and_nothing_is_lost_under_a_tight_limit() -> (
    None
):
    shelf = Shelf()
    async with running(shelf, model_memory=20) as engine:
        asked = [
            make_request(model=NAMES[number % 4], seed=number, steps=1 + number % 5)
            for number in range(80)
        ]
        drawn = await asyncio.gather(*(collect(engine, request) for request in asked))
        for request, events in zip(asked, drawn, strict=True):
            (image,) = [event for event in events if isinstance(event, GeneratedImage)]
            assert image.pixels.rgb == bytes((request.seed, request.steps, 0))
        for name, model in shelf.models.items():
            for batch in model.batches:
                assert {s.generation.request.model for s in batch} == {name}
        loaded = [each for each in engine.status.models if each.state is ModelState.LOADED]
        assert len(loaded) <= 2
        assert engine.status.counters.completed == 80


async def test_others_are_drawn_with_while_a_model_is_loaded() -> None:
    shelf = Shelf()
    async with running(shelf) as engine:
        shelf.gate.clear()
        waiting = asyncio.create_task(collect(engine, make_request(model="second")))
        await until(lambda: state_of(engine, "second") is ModelState.LOADING)
        assert isinstance((await collect(engine, make_request()))[-1], Completed)
        assert not waiting.done()
        shelf.gate.set()
        assert isinstance((await waiting)[-1], Completed)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together with a change"])
async def test_who_leaves_while_waiting_is_not_drawn_for(together: bool) -> None:
    shelf = Shelf()
    async with running(shelf) as engine:
        shelf.gate.clear()
        waiting = asyncio.create_task(collect(engine, make_request(model="second")))
        await until(lambda: state_of(engine, "second") is ModelState.LOADING)
        if together:
            engine._notify()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        shelf.gate.set()
        await until(lambda: state_of(engine, "second") is ModelState.LOADED)
        assert engine.status.counters.admitted == 0


async def test_a_wait_ends_with_the_deadline_and_one_that_must_is_refused_with_the_time() -> None:
    shelf = Shelf()
    async with running(shelf) as engine:
        shelf.gate.clear()
        with pytest.raises(DeadlineExceeded, match="second"):
            await collect(engine, make_request(model="second"), time_limit=0.05)
        engine._catalogue.slots["third"].took = 50.0
        with pytest.raises(Unavailable) as refusal:
            await collect(engine, make_request(model="third"), time_limit=5.0)
        assert refusal.value.reason == Unavailable.LOADING
        assert (refusal.value.retry_after or 0.0) >= 50.0
        shelf.gate.set()
        # It is loaded all the same, for when they come back.
        await until(lambda: state_of(engine, "third") is ModelState.LOADED)


async def test_no_more_wait_than_may() -> None:
    shelf = Shelf()
    async with running(shelf) as engine:
        shelf.gate.clear()
        slot = engine._catalogue.slots["second"]
        waiting = [
            asyncio.create_task(collect(engine, make_request(model="second")))
            for _ in range(MOST_WAITING)
        ]
        await until(lambda: slot.waiting == MOST_WAITING)
        with pytest.raises(Unavailable) as refusal:
            await collect(engine, make_request(model="second"))
        assert refusal.value.reason == Unavailable.FULL
        shelf.gate.set()
        await asyncio.gather(*waiting)


async def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manager, "RETRY_SECONDS", 0.05)
    shelf = Shelf(failures={"second": [OSError("unet/config.json is missing")]})
    async with running(shelf) as engine:
        with pytest.raises(Unavailable, match=r"unet/config\.json") as refusal:
            await collect(engine, make_request(model="second"))
        assert refusal.value.reason == Unavailable.LOADING
        assert engine.status.state is State.READY
        assert isinstance((await collect(engine, make_request()))[-1], Completed)
        await until(lambda: engine._catalogue.slots["second"].retry_at < asyncio_now())
        assert isinstance((await collect(engine, make_request(model="second")))[-1], Completed)


def asyncio_now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_model_that_finds_no_memory_takes_that_of_one_that_is_idle() -> None:
    shelf = Shelf(failures={"second": [OutOfMemory("9 GiB")]})
    async with running(shelf) as engine:
        assert isinstance((await collect(engine, make_request(model="second")))[-1], Completed)
        assert state_of(engine, "first") is ModelState.IDLE
        assert isinstance((await collect(engine, make_request()))[-1], Completed)
        assert shelf.loads == {"second": 2, "first": 1}


async def draw(engine: Engine, *names: str) -> None:
    for name in names:
        assert isinstance((await collect(engine, make_request(model=name)))[-1], Completed)


async def test_a_model_that_leaves_waits_in_the_hosts_memory_and_comes_back_from_there() -> None:
    shelf = Shelf(host=Attic(bytes=20))
    async with running(shelf, model_memory=10) as engine:
        await draw(engine, "second", "third", "second")
        assert shelf.host.parked == ["first", "second", "third"]
        assert shelf.host.restored == ["second"]
        assert shelf.loads == {"second": 1, "third": 1}
        assert state_of(engine, "third") is ModelState.IDLE
        # There is room for two: the first was used least recently, and is on disk alone by now.
        await draw(engine, "fourth", "first")
        assert shelf.loads == {"second": 1, "third": 1, "fourth": 1, "first": 1}
        await draw(engine, "fourth")
        assert shelf.host.restored == ["second", "fourth"]


async def test_what_cannot_be_kept_there_or_is_no_longer_on_disk_so_is_loaded_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manager, "LOOK_SECONDS", 0.02)
    shelf = Shelf(host=Attic(bytes=100))
    async with running(shelf, model_memory=10) as engine:
        await draw(engine, "second", "third")
        shelf.entries["second"] = entry("second", stamp=1)
        slot = engine._catalogue.slots["second"]
        await until(lambda: slot.info is not None and slot.info.revision == "1")
        await draw(engine, "second")
        assert shelf.host.restored == []
        assert shelf.loads["second"] == 2
        shelf.host.refuses = True
        await draw(engine, "third", "second")
        assert shelf.host.restored == ["third"]
        assert shelf.loads["second"] == 3


async def test_a_model_that_the_limit_never_allows_says_so() -> None:
    async with running(Shelf(), model_memory=5) as engine:
        with pytest.raises(Unavailable, match="T2I_MODEL_MEMORY is 5"):
            await collect(engine, make_request(model="second"))


async def test_models_come_go_and_change_while_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "LOOK_SECONDS", 0.02)
    shelf = Shelf()
    async with running(shelf) as engine:
        await collect(engine, make_request(model="second"))
        shelf.entries["fifth"] = entry("fifth")
        del shelf.entries["third"]
        shelf.entries["second"] = entry("second", stamp=1)
        await until(lambda: state_of(engine, "fifth") is not None)
        await until(lambda: state_of(engine, "third") is None)
        await until(lambda: engine.model_named("second").revision == "1")
        assert isinstance((await collect(engine, make_request(model="fifth")))[-1], Completed)
        with pytest.raises(ModelNotFound, match="'fifth'"):
            await collect(engine, make_request(model="third"))
        old = shelf.models["second"]
        await collect(engine, make_request(model="second"))
        assert shelf.models["second"] is not old, "drawn with what its files were"


async def test_a_model_that_goes_finishes_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "LOOK_SECONDS", 0.02)
    shelf = Shelf()
    async with running(shelf) as engine:
        await collect(engine, make_request(model="second"))
        events = engine.generate(
            make_request(model="second", steps=200), StreamOptions(), time_limit=1e6
        )
        assert type(await anext(events)) is Queued
        del shelf.entries["second"]
        await until(lambda: state_of(engine, "second") is None)
        assert isinstance([event async for event in events][-1], Completed)
        await until(lambda: "second" not in (engine._worker.models or ()))


async def test_the_default_model_is_loaded_anew_when_its_files_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manager, "LOOK_SECONDS", 0.02)
    shelf = Shelf()
    async with running(shelf) as engine:
        events = engine.generate(make_request(steps=200), StreamOptions(), time_limit=1e6)
        assert type(await anext(events)) is Queued
        shelf.entries["first"] = entry("first", stamp=1)
        await until(lambda: engine.model.revision == "1")
        assert isinstance([event async for event in events][-1], Completed)
        assert isinstance((await collect(engine, make_request()))[-1], Completed)
        assert shelf.loads["first"] == 1
