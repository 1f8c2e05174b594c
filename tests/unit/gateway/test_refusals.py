"""A full runner is not asked again for the like of what it refused, for as long as the refusal lasts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.samples import REQUEST
from tests.unit.gateway.scripted import STORY, ScriptedRunner
from tests.unit.gateway.test_runner_link import linked
from text2image.core.errors import Unavailable
from text2image.core.messages import Request, Share, State, StreamOptions
from text2image.gateway.refusals import CLAIM, ONE_BY_ONE, Kind, Refusals
from text2image.gateway.runner_link import RunnerLink

PATIENCE = 10.0
ALICE, BOB = Share("alice"), Share("bob")
KIND = Kind.of(REQUEST, PATIENCE, ALICE)


def refusal(lasts: float) -> Unavailable:
    return Unavailable("full", reason=Unavailable.FULL, retry_after=3.0, lasts=lasts)


class Memory:
    """Refusals on a clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0
        self.refusals = Refusals(lambda: self.now)

    def refuses(self, kind: Kind, *, claim: bool = False) -> bool:
        try:
            self.refusals.check(kind, claim=claim)
        except Unavailable:
            return True
        return False


@pytest.fixture
def memory() -> Memory:
    memory = Memory()
    memory.refusals.keep(KIND, refusal(lasts=0.5))
    return memory


@pytest.mark.parametrize(
    "request_",
    [replace(REQUEST, prompt="a dog"), replace(REQUEST, negative_prompt="rain", seed=99)],
    ids=["prompt", "seed"],
)
def test_what_is_shown_is_of_no_matter(memory: Memory, request_: Request) -> None:
    assert memory.refuses(Kind.of(request_, PATIENCE - 0.01, ALICE))


@pytest.mark.parametrize(
    "kind",
    [
        Kind.of(REQUEST, PATIENCE, BOB),
        Kind.of(REQUEST, 2 * PATIENCE, ALICE),
        Kind.of(replace(REQUEST, steps=REQUEST.steps - 1), PATIENCE, ALICE),
        Kind.of(replace(REQUEST, width=REQUEST.width // 2), PATIENCE, ALICE),
        Kind.of(replace(REQUEST, n=REQUEST.n + 1), PATIENCE, ALICE),
    ],
    ids=["owner", "patience", "steps", "size", "pictures"],
)
def test_who_asks_for_something_else_is_not_refused_for_it(memory: Memory, kind: Kind) -> None:
    assert not memory.refuses(kind)


def test_a_refusal_is_told_as_the_runner_told_it(memory: Memory) -> None:
    with pytest.raises(Unavailable) as raised:
        memory.refusals.check(KIND)
    assert (str(raised.value), raised.value.reason) == ("full", Unavailable.FULL)
    assert raised.value.retry_after == 3.0


def test_it_is_forgotten_when_its_time_is_over(memory: Memory) -> None:
    memory.now += 0.49
    assert memory.refuses(KIND)
    memory.now += 0.02
    assert not memory.refuses(KIND)


def test_what_does_not_last_is_not_kept() -> None:
    memory = Memory()
    memory.refusals.keep(KIND, refusal(lasts=0.0))
    assert not memory.refuses(KIND)


def test_what_is_over_takes_no_memory(memory: Memory) -> None:
    for number in range(1000):
        memory.now += 0.01
        memory.refusals.keep(Kind.of(REQUEST, number, ALICE), refusal(lasts=0.1))
    assert len(memory.refusals) <= 12


def test_one_asks_whether_it_still_holds_and_all_others_wait_for_the_answer(memory: Memory) -> None:
    memory.now += 1.0
    with memory.refusals.probe(KIND):
        assert memory.refuses(KIND)
    assert not memory.refuses(KIND), "it was admitted"
    memory.now += ONE_BY_ONE
    assert not memory.refuses(KIND)
    assert len(memory.refusals) == 0


def test_of_a_crowd_that_asks_when_a_refusal_ends_one_gets_through(memory: Memory) -> None:
    memory.now += 0.5
    assert [memory.refuses(KIND, claim=True) for _ in range(3)] == [False, True, True]
    assert not memory.refuses(KIND), "the one itself, when it is at the runner"
    memory.now += CLAIM
    assert not memory.refuses(KIND, claim=True), "it never came there"


def test_of_a_crowd_that_asks_when_one_was_admitted_one_gets_through(memory: Memory) -> None:
    memory.now += 1.0
    with memory.refusals.probe(KIND):
        assert memory.refuses(KIND, claim=True)
    assert [memory.refuses(KIND, claim=True) for _ in range(3)] == [False, True, True]


def test_long_after_a_refusal_a_crowd_gets_through(memory: Memory) -> None:
    memory.now += 0.5 + ONE_BY_ONE
    assert not any(memory.refuses(KIND, claim=True) for _ in range(3))


def test_a_crowd_is_told_how_long_it_lasts_unless_one_is_on_the_way(memory: Memory) -> None:
    def lasts() -> float:
        refusal = memory.refusals.find(KIND, claim=True)
        assert refusal
        return refusal.lasts

    assert lasts() == 0.5
    memory.now += 1.0
    with memory.refusals.probe(KIND):
        assert lasts() == 0.0


def test_what_the_one_is_told_counts_for_all(memory: Memory) -> None:
    memory.now += 1.0
    with memory.refusals.probe(KIND):
        memory.refusals.keep(KIND, refusal(lasts=0.5))
    assert memory.refuses(KIND)


async def draw(link: RunnerLink, share: Share) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    async for _ in link.generate(REQUEST, StreamOptions(), deadline, share):
        pass


async def test_the_runner_itself_is_asked_once_and_clients_are_told_the_same(
    tmp_path: Path,
) -> None:
    runner = ScriptedRunner(tmp_path / "0", [refusal(lasts=60.0)], STORY)
    await runner.start()
    async with linked(runner.address) as (link, until):
        await until(State.READY)
        told = []
        for _ in range(2):
            with pytest.raises(Unavailable) as raised:
                await draw(link, ALICE)
            told.append(raised.value.__dict__)
        assert told[0] == told[1]
        assert len(runner.requests) == 1
        await draw(link, BOB)
        assert len(runner.requests) == 2
    await runner.die()
