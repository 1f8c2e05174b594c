"""Every server is asked for the same, in turns, and the first round is finished whatever the time is."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from loadtests.compare import MIXES, Contender, Plan, measure
from loadtests.comparison import OURS, Comparison, Load

OPEN, CLOSED = Load(share=0.5), Load(clients=2)
NAMES = (OURS, "one", "another")


class Bare:
    """A pipeline that takes a thousandth of a second for a step of any batch."""

    def seconds(self, batch: int, steps: int) -> float:
        return steps / 1000


class Lab:
    """Servers that answer after a moment, and what they were asked for while each was awake."""

    def __init__(self) -> None:
        self.awake: set[str] = set()
        self.woken: list[str] = []
        self.asked: dict[str, list[list[int]]] = defaultdict(list)

    def contender(self, name: str) -> Contender:
        async def call(seed: int, steps: int) -> object:
            assert self.awake == {name} or not self.woken, "another one is being measured"
            if self.woken:
                self.asked[name][-1].append(steps)
            await asyncio.sleep(0.02)
            return seed

        @contextmanager
        def awake() -> Iterator[None]:
            self.awake.add(name)
            self.woken.append(name)
            self.asked[name].append([])
            yield
            self.awake.remove(name)

        return Contender(name, call, awake)


async def measured(rounds: int, ends: float) -> tuple[Lab, Comparison]:
    lab, comparison = Lab(), Comparison(8)
    plan = Plan(seconds=0.04, ends=ends, rounds=rounds, loads=(OPEN, CLOSED))
    await measure(plan, comparison, [lab.contender(name) for name in NAMES], Bare())
    return lab, comparison


async def test_all_are_asked_for_the_same_and_only_one_at_a_time() -> None:
    lab, comparison = await measured(rounds=100, ends=0.0)
    assert len(comparison.runs) == len(MIXES) * 2 * len(NAMES)
    # The open loop of each mix: as many requests, of the same steps in the same order.
    for number in (0, 1):
        ours, *others = (lab.asked[name][number] for name in NAMES)
        assert ours
        assert all(asked == ours for asked in others)
    assert set(lab.asked[OURS][0]) == {20}
    assert set(lab.asked[OURS][1]) == {10, 20, 40}


async def test_the_first_round_is_whole_and_another_begins_only_in_time() -> None:
    _, comparison = await measured(rounds=100, ends=0.0)
    assert {len(runs) for runs in comparison.runs.values()} == {1}
    assert {len(values) for values in comparison.limit.values()} == {1}


async def test_who_is_measured_first_changes_from_round_to_round() -> None:
    lab, comparison = await measured(rounds=2, ends=float("inf"))
    assert {len(runs) for runs in comparison.runs.values()} == {2}
    half = len(lab.woken) // 2
    assert lab.woken[:3] == list(NAMES)
    assert lab.woken[half : half + 3] == ["one", "another", OURS]


async def test_the_limit_is_that_of_full_batches_of_each_step_count() -> None:
    _, comparison = await measured(rounds=1, ends=0.0)
    uniform, mixed = (mix.name for mix in MIXES)
    assert comparison.lone[uniform] == [0.02]
    assert comparison.limit[uniform] == [8 / 0.02]
    assert comparison.limit[mixed] == [24 / 0.07]
