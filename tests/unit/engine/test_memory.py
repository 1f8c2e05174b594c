"""The memory guard: batches stay within what is free, and what fits at no size is refused in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import NATIVE, Clock, TimedModel, key_of, make_request
from tests.harness import LoopHarness
from tests.unit.engine.test_engine import collect, running
from text2image.core.errors import InvalidRequest, Unavailable
from text2image.core.messages import Completed, Queued, StreamOptions
from text2image.engine import memory
from text2image.engine.host_memory import HostMemory
from text2image.engine.memory import READING_PAUSE, MemoryGuard
from text2image.engine.sample import Sample
from text2image.engine.warmup import measure

MIB = 1 << 20
FIXED, PER_ROW, PER_DECODE = 40 * MIB, 10 * MIB, 30 * MIB


@dataclass
class Card:
    """A device's memory, as the test sets it."""

    left: int | None = 1000 * MIB
    most: int = 0
    kept: int = 0
    readings: int = 0

    def free(self) -> int | None:
        self.readings += 1
        return self.left

    def used(self) -> int:
        return self.kept

    def restart(self) -> int:
        self.most = self.kept
        return self.kept

    def peak(self) -> int | None:
        return self.most

    def take(self, size: int) -> None:
        self.most = max(self.most, size)


class Hungry(TimedModel):
    """A model whose steps take memory of a card, and which counts the times that there was too little."""

    def __init__(self, card: Card) -> None:
        super().__init__(memory=card)
        self.card = card
        self.exhausted = 0

    def _need(self, size: int) -> None:
        self.exhausted += self.card.left is not None and size > self.card.left
        self.card.take(size)

    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        self._need(int(FIXED + self._scale(samples) * sum(each.rows for each in samples) * PER_ROW))
        return super().predict(samples)

    def decode(self, samples: Sequence[Sample]) -> list[Any]:
        self._need(int(self._scale(samples) * len(samples) * PER_DECODE))
        return super().decode(samples)


class GuardedHarness(LoopHarness[Hungry, Clock]):
    """The loop around a model that was warmed up on a card, with the guard between them."""

    def __init__(self, card: Card, reserve: float = 0.1) -> None:
        model = Hungry(card)
        guard = MemoryGuard(card, reserve=reserve)
        costs = measure(model, guard, max_rows=0, clock=model.clock, report=lambda line: None)
        super().__init__(model, costs, model.clock, memory=guard)


def rows_of_steps(harness: GuardedHarness) -> list[int]:
    return [sum(sample.rows for sample in batch) for batch in harness.model.batches]


def test_the_warm_up_stops_before_the_memory_is_full() -> None:
    card = Card(FIXED + 20 * PER_ROW)
    harness = GuardedHarness(card)
    assert harness.model.exhausted == 0
    assert max(rows_of_steps(harness)) == 16


def test_a_warm_up_that_ends_early_still_tells_rows_from_what_any_step_takes() -> None:
    harness = GuardedHarness(Card(FIXED + 5 * PER_ROW))
    guided = harness.submit(make_request(guidance_scale=5.0))
    harness.finish()
    assert isinstance(harness.ending(guided), Completed)
    assert harness.model.exhausted == 0


def test_pictures_that_are_decoded_in_tiles_take_no_more_than_the_largest_that_is_not() -> None:
    """So the guard refuses none for what its decoding whole would take."""
    card = Card(FIXED + 40 * PER_ROW)
    guard = MemoryGuard(card)
    model = Hungry(card)
    model.info = replace(model.info, tiled_above=2 * 128 * 128)
    measure(model, guard, max_rows=0, clock=model.clock, report=lambda line: None)
    large, larger = key_of(32, 16), key_of(128, 16)
    assert guard.need(large, 0) == guard.need(larger, 0) == 2 * PER_DECODE
    guard.refresh(READING_PAUSE)
    assert guard.pictures(large) == guard.pictures(larger) > 1


def test_invariant_8_the_cap_keeps_a_reserve_of_what_is_free() -> None:
    card = Card()
    harness = GuardedHarness(card, reserve=0.2)
    card.left = FIXED * 2
    harness.clock.now += READING_PAUSE
    harness.submit()
    harness.loop.tick()
    assert harness.costs.cap(NATIVE) == int((0.8 * card.left - FIXED) / PER_ROW)


def test_invariant_8_the_cap_falls_before_the_memory_is_full_and_rises_again_when_there_is_room() -> (
    None
):
    card = Card()
    harness = GuardedHarness(card)
    for seed in range(40):
        harness.submit(make_request(steps=20, seed=seed))
    harness.loop.tick()
    wide = rows_of_steps(harness)[-1]
    card.left = FIXED + 8 * PER_ROW
    harness.clock.now += READING_PAUSE
    harness.loop.tick()
    assert rows_of_steps(harness)[-1] == 6
    card.left = 1000 * MIB
    harness.clock.now += READING_PAUSE
    harness.loop.tick()
    assert rows_of_steps(harness)[-1] == wide
    harness.finish()
    assert harness.model.exhausted == 0
    assert all(isinstance(harness.ending(each), Completed) for each in harness.predicted)


def test_invariant_8_larger_pictures_get_fewer_rows() -> None:
    harness = GuardedHarness(Card(FIXED + 40 * PER_ROW), reserve=0.0)
    for seed in range(20):
        harness.submit(make_request(steps=2, seed=seed, width=256, height=256))
    harness.finish()
    assert harness.model.exhausted == 0
    assert max(rows_of_steps(harness)[-5:]) <= 10


def test_the_memory_is_not_read_at_every_step() -> None:
    card = Card()
    harness = GuardedHarness(card)
    harness.submit(make_request(steps=100))
    before, began = card.readings, harness.clock()
    harness.finish()
    assert card.readings - before <= (harness.clock() - began) / READING_PAUSE + 2


def test_a_size_that_does_not_fit_now_is_refused_in_words_and_the_others_are_served() -> None:
    card = Card()
    harness = GuardedHarness(card)
    card.left = 100 * MIB
    harness.clock.now += READING_PAUSE
    large = harness.submit(make_request(width=256, height=256))
    small = harness.submit()
    harness.finish()
    ending = harness.ending(large)
    assert isinstance(ending, Unavailable)
    assert ending.retry_after
    for words in ("256x256", "120 MiB", "90 are free", "smaller"):
        assert words in ending.message
    assert isinstance(harness.ending(small), Completed)
    card.left = 1000 * MIB
    harness.clock.now += READING_PAUSE
    again = harness.submit(make_request(width=256, height=256))
    harness.finish()
    assert isinstance(harness.ending(again), Completed)


def test_a_size_that_never_fits_is_the_clients_to_change() -> None:
    harness = GuardedHarness(Card(FIXED + 10 * PER_ROW))
    generation = harness.submit(make_request(width=512, height=512))
    harness.finish()
    ending = harness.ending(generation)
    assert isinstance(ending, InvalidRequest)
    assert [violation.field for violation in ending.violations] == ["width", "height"]
    assert "512x512" in ending.message


def test_decoding_that_takes_more_than_a_step_counts() -> None:
    guard = MemoryGuard(card := Card(), reserve=0.0)
    card.take(10 * MIB)
    guard.learn_step(NATIVE, 1)
    guard.restart()
    card.take(90 * MIB)
    guard.learn_decode()
    assert guard.need(NATIVE, 2) == 90 * MIB
    assert guard.need(key_of(32, 32), 2) == 360 * MIB


def test_what_steps_keep_does_not_grow_with_the_picture_that_is_decoded() -> None:
    guard = MemoryGuard(card := Card(), reserve=0.0)
    guard.restart()
    for rows in (1, 2):
        card.take(300 * MIB + rows * 50 * MIB)
        guard.learn_step(NATIVE, rows)
    card.kept = 300 * MIB
    guard.restart()
    card.take(400 * MIB)
    guard.learn_decode()
    assert guard.need(NATIVE, 1) == 400 * MIB
    assert guard.need(key_of(32, 32), 1) == 700 * MIB
    guard.refresh(0.0)
    assert guard.pictures(key_of(32, 32)) == 1
    assert guard.pictures(NATIVE) == 7


async def test_a_request_that_does_not_fit_is_refused_at_once_and_by_what_is_free_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "READING_PAUSE", 0.0)
    card = Card()
    large = make_request(width=256, height=256)
    async with running(Hungry(card), memory_reserve=0.1) as engine:
        card.left = 100 * MIB
        events = engine.generate(large, StreamOptions(), time_limit=1e6)
        assert type(await anext(events)) is Queued, "the last reading was of a time of plenty"
        with pytest.raises(Unavailable, match="256x256"):
            await anext(events)
        with pytest.raises(Unavailable, match="256x256"):
            await anext(engine.generate(large, StreamOptions(), time_limit=1e6))
        counters = engine.status.counters
        assert (counters.admitted, counters.refused) == (1, 1)
        card.left = 1000 * MIB
        assert isinstance((await collect(engine, large))[-1], Completed)


@pytest.mark.parametrize("card", [None, Card(left=None)])
def test_a_device_that_tells_nothing_bounds_nothing(card: Card | None) -> None:
    guard = MemoryGuard(card, reserve=0.1)
    guard.learn_step(NATIVE, 1)
    guard.refresh(0.0)
    assert guard.rows(NATIVE) > 10**6


class Machine:
    """The files that Linux tells a process's memory in."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroups.mkdir()
        self.available(5000)
        self.used(400, 600)
        (self.proc / "self/cgroup").write_text("1:memory:/old\n0::/service/runner\n")
        self.memory = HostMemory(self.proc, self.cgroups)

    def available(self, mebibytes: int) -> None:
        (self.proc / "meminfo").write_text(
            f"MemTotal: 9999999 kB\nMemFree: 1 kB\nMemAvailable: {mebibytes * 1024} kB\n"
        )

    def used(self, now: int, most: int) -> None:
        (self.proc / "self/status").write_text(
            f"Name:\tpython\nVmHWM:\t {most * 1024} kB\nVmRSS:\t {now * 1024} kB\n"
        )

    def limit(self, cgroup: str, limit: str, current: int = 0, **stat: int) -> None:
        folder = self.cgroups / cgroup
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{current * MIB}\n")
        self._stat(folder, stat)

    def limit_v1(self, cgroup: str, limit: int, usage: int, **stat: int) -> None:
        folder = self.cgroups / "memory" / cgroup
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit * MIB}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{usage * MIB}\n")
        self._stat(folder, stat)

    def _stat(self, folder: Path, mebibytes: dict[str, int]) -> None:
        lines = [f"{name} {value * MIB}\n" for name, value in mebibytes.items()]
        (folder / "memory.stat").write_text("".join(["anon 1\n", *lines, "file 3\n"]))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_container_the_machines_memory_counts(machine: Machine) -> None:
    assert machine.memory.free() == 5000 * MIB
    machine.limit("service/runner", "max", current=300)
    assert machine.memory.free() == 5000 * MIB


def test_in_a_container_its_limit_counts_and_file_pages_that_can_go_are_free(
    machine: Machine,
) -> None:
    machine.limit("service/runner", str(1000 * MIB), current=800, inactive_file=150)
    assert machine.memory.free() == 350 * MIB
    machine.available(100)
    assert machine.memory.free() == 100 * MIB


def test_in_a_container_files_in_use_and_the_kernels_caches_can_go_but_not_what_is_mapped(
    machine: Machine,
) -> None:
    reclaimable = {"inactive_file": 10, "active_file": 300, "file_mapped": 100}
    machine.limit(
        "service/runner", str(1000 * MIB), current=800, slab_reclaimable=40, **reclaimable
    )
    assert machine.memory.free() == 450 * MIB


def test_in_a_container_of_the_first_version_its_limit_counts_too(machine: Machine) -> None:
    (machine.proc / "self/cgroup").write_text("3:cpu,cpuacct:/\n2:memory:/service/runner\n")
    files = {"total_inactive_file": 100, "total_active_file": 90, "total_mapped_file": 40}
    machine.limit_v1("service/runner", 1000, 800, **files)
    assert machine.memory.free() == 350 * MIB
    machine.limit_v1("", 900, 700)
    assert machine.memory.free() == 200 * MIB


def test_the_tightest_of_the_groups_around_a_process_counts(machine: Machine) -> None:
    machine.limit("service/runner", str(1000 * MIB), current=100)
    machine.limit("service", str(900 * MIB), current=700)
    machine.limit("", "max")
    assert machine.memory.free() == 200 * MIB


def test_what_earlier_steps_gave_back_to_the_allocator_is_free_for_the_next(
    machine: Machine,
) -> None:
    machine.memory.restart()
    machine.used(450, 700)
    assert machine.memory.free() == 5050 * MIB
    assert machine.memory.peak() == 300 * MIB
    assert machine.memory.restart() == 50 * MIB
    assert machine.memory.peak() == 300 * MIB, "what was held before the first step is no step's"


def test_what_was_taken_for_good_since_the_first_step_is_not_free_for_the_next(
    machine: Machine,
) -> None:
    taken = [20 * MIB]
    memory = HostMemory(machine.proc, machine.cgroups, held=lambda: sum(taken))
    memory.restart()
    machine.used(450, 700)
    taken.append(30 * MIB)
    assert memory.free() == 5020 * MIB


def test_files_that_are_not_there_tell_nothing(tmp_path: Path) -> None:
    host = HostMemory(tmp_path / "proc", tmp_path / "cgroup")
    host.restart()
    assert host.free() is None
    assert host.used() is None
    assert host.peak() is None


def test_this_very_process_has_memory_left_and_a_peak() -> None:
    host = HostMemory()
    host.restart()
    held = bytearray(64 * MIB)
    assert (host.free() or 0) > 0
    assert (host.used() or 0) > len(held)
    # Pages that others gave back at the same time may have made some of the room.
    assert (host.peak() or 0) >= 0.9 * len(held)
