"""Requests in the background on their way through the gateway: they wait in line, and are no others' requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from tests.doubles import make_info, make_request
from tests.unit.gateway.asking import asking
from text2image.core.errors import Unavailable
from text2image.core.messages import Completed, Event, Loading, ModelInfo, Queued, Share
from text2image.gateway.background import BackgroundLine
from text2image.gateway.refusals import Kind
from text2image.gateway.singleflight import identity_of
from text2image.net import wire

INFO = make_info()


class Full:
    """A runner that has room for a request when it is told so."""

    def __init__(self) -> None:
        self.room = asyncio.Semaphore(0)
        self.asked: list[int] = []
        self.admitted: list[int] = []

    async def generate(self, number: int) -> AsyncGenerator[tuple[Event, ModelInfo], None]:
        self.asked.append(number)
        if self.room.locked():
            raise Unavailable("full", reason=Unavailable.FULL, retry_after=0.001)
        await self.room.acquire()
        self.admitted.append(number)
        yield Loading("", None), INFO
        yield Queued(0.0), INFO
        yield Completed(), INFO


async def drawn(line: BackgroundLine, runner: Full, number: int, model: str = "") -> list[Event]:
    async with aclosing(line.drawn(model, lambda: runner.generate(number))) as events:
        return [event async for event, _ in events]


async def test_who_comes_first_is_admitted_first_and_asks_alone() -> None:
    line, runner = BackgroundLine(), Full()
    waiting = [asyncio.create_task(drawn(line, runner, number)) for number in range(5)]
    while len(runner.asked) < 3:
        await asyncio.sleep(0)
    assert set(runner.asked) == {0}
    waiting[1].cancel()
    for _ in range(4):
        runner.room.release()
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert runner.admitted == [0, 2, 3, 4]
    assert [type(event) for event in told[4]] == [Loading, Queued, Completed]


async def test_those_of_another_model_stand_in_another_line() -> None:
    line, full, free = BackgroundLine(), Full(), Full()
    waiting = asyncio.create_task(drawn(line, full, 0, "crowded"))
    while not full.asked:
        await asyncio.sleep(0)
    free.room.release()
    assert await drawn(line, free, 1, "other")
    waiting.cancel()


async def test_what_no_waiting_cures_is_told_at_once() -> None:
    async def failing() -> AsyncGenerator[tuple[Event, ModelInfo], None]:
        raise Unavailable("draining", reason=Unavailable.DRAINING, retry_after=1.0)
        yield

    with pytest.raises(Unavailable):
        async for _ in BackgroundLine().drawn("", failing):
            pass


@pytest.mark.parametrize("background", [False, True])
def test_the_class_crosses_to_the_runner(background: bool) -> None:
    share = Share("key:größe", 7, background)
    assert wire.share_from(wire.share_to(share)) == share


def test_a_picture_in_the_background_is_no_drawing_for_whoever_asks_now() -> None:
    contexts = [asking(seed=7), asking(seed=7)]
    contexts[1].background = True
    for context in contexts:
        context.model, context.request = INFO, make_request(seed=7)
    assert identity_of(contexts[0]) != identity_of(contexts[1])
    kinds = {Kind.of(make_request(), 60.0, context.share) for context in contexts}
    assert len(kinds) == 2
