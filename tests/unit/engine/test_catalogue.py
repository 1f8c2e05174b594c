"""Which models are loaded, which leave, and that no request is lost over it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles import Clock, make_info
from text2image.core.catalogue import Entry
from text2image.core.errors import ModelNotFound
from text2image.core.messages import ModelState
from text2image.engine.catalogue import Catalogue, Slot
from text2image.engine.warmup import SHARE_BESIDE_STEPS, Interleaved, Pieces

NAMES = ("first", "second", "third", "fourth")


def entry(name: str, stamp: int = 0) -> Entry:
    return Entry(name=name, source=name, stamp=stamp)


def catalogue_of(sizes: Mapping[str, int], limit: int | None) -> Catalogue:
    catalogue = Catalogue({name: entry(name) for name in sizes}, next(iter(sizes)), limit)
    for name, slot in catalogue.slots.items():
        slot.size = sizes[name]
        slot.info = make_info(id=name)
    return catalogue


@dataclass
class Ask:
    name: str


@dataclass
class Finish:
    which: int


@dataclass
class Turn:
    times: int


actions = st.lists(
    st.one_of(
        st.builds(Ask, st.sampled_from(NAMES)),
        st.builds(Finish, st.integers(0, 20)),
        st.builds(Turn, st.integers(1, 3)),
    ),
    max_size=60,
)


@dataclass
class Play:
    """What a manager does with a catalogue, in single steps, and the requests around it."""

    catalogue: Catalogue
    waiting: list[tuple[Slot, Any]] = field(default_factory=list)
    running: list[tuple[Slot, Any]] = field(default_factory=list)
    loads: int = 0

    def ask(self, name: str) -> None:
        slot = self.catalogue.find(name)
        wait = self.catalogue.waiting_for(slot)
        wait.__enter__()
        self.waiting.append((slot, wait))
        self.admit()

    def admit(self) -> None:
        for slot, wait in [each for each in self.waiting if each[0].is_open]:
            wait.__exit__(None, None, None)
            self.waiting.remove((slot, wait))
            run = self.catalogue.running_on(slot)
            run.__enter__()
            self.running.append((slot, run))

    def finish(self, which: int) -> None:
        if self.running:
            _, run = self.running.pop(which % len(self.running))
            run.__exit__(None, None, None)

    def turn(self) -> None:
        catalogue = self.catalogue
        if slot := catalogue.leaves():
            assert not slot.running, "a model left under a running sample"
            catalogue.left(slot)
        elif (wanted := catalogue.wanted()) and catalogue.make_room(wanted):
            wanted.state = ModelState.LOADED
            self.loads += 1
            limit, held = catalogue.limit, [s for s in catalogue.slots.values() if s.is_loaded]
            assert limit is None or sum(slot.size for slot in held) <= limit
        self.admit()


@settings(max_examples=300)
@given(
    actions,
    st.lists(st.integers(1, 5), min_size=4, max_size=4),
    st.one_of(st.none(), st.integers(5, 12)),
)
def test_every_request_gets_its_model_within_the_limit_and_none_is_lost(
    script: list[Any], sizes: list[int], limit: int | None
) -> None:
    play = Play(catalogue_of(dict(zip(NAMES, sizes, strict=True)), limit))
    asked = 0
    for action in script:
        match action:
            case Ask(name):
                play.ask(name)
                asked += 1
            case Finish(which):
                play.finish(which)
            case Turn(times):
                for _ in range(times):
                    play.turn()
    served = 0
    for _ in range(20 * len(NAMES)):
        play.turn()
        while play.running:
            play.finish(0)
            served += 1
    assert not play.waiting, "a request waits for ever"
    assert all(slot.running == slot.waiting == 0 for slot in play.catalogue.slots.values())


def test_a_model_that_is_never_idle_keeps_no_other_out() -> None:
    play = Play(catalogue_of({"first": 3, "second": 3}, limit=3))
    play.ask("first")
    play.turn()
    play.ask("second")
    turns = 0
    while any(slot.name == "second" for slot, _ in play.waiting):
        play.ask("first")
        play.turn()
        play.finish(0)
        turns += 1
        assert turns < 10
    assert any(slot.name == "first" for slot, _ in play.waiting), "who came later waits now"
    for _ in range(10):
        play.turn()
        play.finish(0)
    assert not play.waiting


def test_the_one_used_least_recently_leaves() -> None:
    play = Play(catalogue_of({"first": 2, "second": 2, "third": 2}, limit=4))
    for name in ("first", "second", "first"):
        play.ask(name)
        play.turn()
        play.finish(0)
    play.ask("third")
    for _ in range(3):
        play.turn()
    loaded = {name for name, slot in play.catalogue.slots.items() if slot.is_loaded}
    assert loaded == {"first", "third"}


def test_the_wait_for_a_model_follows_from_what_loading_took_and_its_size() -> None:
    catalogue = catalogue_of({"first": 100, "second": 200, "third": 50}, limit=None)
    second = catalogue.slots["second"]
    assert catalogue.seconds_until_open(second, 0.0) is None
    catalogue.slots["first"].took = 10.0
    assert catalogue.seconds_until_open(second, 0.0) == pytest.approx(20.0)
    with catalogue.waiting_for(catalogue.slots["third"]):
        assert catalogue.seconds_until_open(second, 0.0) == pytest.approx(25.0)
    second.state, second.began = ModelState.LOADING, 100.0
    assert catalogue.seconds_until_open(second, 108.0) == pytest.approx(12.0)


def test_an_unknown_name_is_told_with_the_names_there_are_and_aliases_are_known() -> None:
    catalogue = Catalogue(
        {"a": Entry(name="a", source="a", aliases=("anime",)), "b": entry("b")}, "a", None
    )
    assert catalogue.find("anime") is catalogue.find("") is catalogue.slots["a"]
    with pytest.raises(ModelNotFound, match=r"'c' is not served here; 'a', 'b' are"):
        catalogue.find("c")


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(0, 12))
def test_models_in_the_hosts_memory_stay_within_its_room_and_the_oldest_leave_it(
    sizes: list[int], room: int
) -> None:
    catalogue = catalogue_of({str(number): size for number, size in enumerate(sizes)}, None)
    for slot in catalogue.slots.values():
        with catalogue.running_on(slot):
            pass
        kept = catalogue.park(slot, room)
        assert kept is slot.parked is (slot.size <= room)
        parked = [each for each in catalogue.slots.values() if each.parked]
        assert sum(each.size for each in parked) <= room
        if kept:
            # All that were used later than one that is kept, and were ever kept, are kept too.
            oldest = min(each.used for each in parked)
            between = [each for each in catalogue.slots.values() if oldest <= each.used]
            assert all(each.parked for each in between if each.size <= room)


def test_a_model_steps_at_most_a_share_of_the_time_while_it_is_measured_beside_others() -> None:
    """By the clock that the pieces and the steps of others move."""
    clock = Clock()

    def pieces() -> Pieces[None]:
        for _ in range(50):
            clock.now += 0.05
            yield

    work, beside, others = Interleaved(pieces(), clock), 0.0, 0.0
    while True:
        before = clock.now
        if not work.advance(idle=False):
            break
        beside += clock.now - before
        clock.now += 0.01
        others += 0.01
    assert beside / (beside + others) == pytest.approx(SHARE_BESIDE_STEPS, abs=0.02)
    assert Interleaved(pieces(), clock).advance(idle=True)
