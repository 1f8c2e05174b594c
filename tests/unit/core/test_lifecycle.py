"""Draining: new work is refused, admitted work is finished, and only then the signal goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from text2image.core import lifecycle
from text2image.core.errors import Unavailable
from text2image.core.lifecycle import Work, drain_on_signal


def nothing() -> None:
    """What ends work that ends by itself."""


async def test_new_work_is_refused_once_draining_began() -> None:
    work = Work()
    await work.drain(0)
    with pytest.raises(Unavailable) as refused, work.admit(nothing):
        pass
    assert refused.value.reason == Unavailable.DRAINING
    assert refused.value.retry_after


async def test_admitted_work_is_waited_for() -> None:
    work = Work()
    ended: list[str] = []
    with work.admit(lambda: ended.append("first")), work.admit(nothing):
        draining = asyncio.create_task(work.drain(60))
        await asyncio.sleep(0)
        assert work.draining
        assert not draining.done()
    await draining
    assert not ended


async def test_what_takes_too_long_is_stopped() -> None:
    work = Work()
    stopped = asyncio.Event()
    with work.admit(stopped.set):
        draining = asyncio.create_task(work.drain(0.01))
        await stopped.wait()
        assert not draining.done()
    await draining


async def test_work_that_fails_is_over_too() -> None:
    work = Work()
    with pytest.raises(ZeroDivisionError), work.admit(nothing):
        raise ZeroDivisionError
    assert len(work) == 0
    await work.drain(60)


async def test_work_that_cannot_be_stopped_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "LINGER", 0.01)
    work = Work()
    stopped = asyncio.Event()
    with work.admit(stopped.set):
        await work.drain(0)
        assert stopped.is_set()


class Former:
    """The handlers that were there before, as uvicorn's are."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.called = asyncio.Event()

    def __call__(self, number: int, frame: object) -> None:
        self.seen.append(number)
        self.called.set()


@pytest.fixture
def former() -> Iterator[Former]:
    handler = Former()
    kept = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    yield handler
    for number, original in kept.items():
        signal.signal(number, original)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_goes_on_when_all_is_drained(former: Former, number: signal.Signals) -> None:
    begun, drained = asyncio.Event(), asyncio.Event()

    async def drain() -> None:
        begun.set()
        await drained.wait()

    drain_on_signal(drain)
    os.kill(os.getpid(), number)
    await begun.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0)
    assert former.seen == []
    drained.set()
    await former.called.wait()
    assert former.seen == [number]


async def test_a_second_interrupt_does_not_wait(former: Former) -> None:
    begun = asyncio.Event()

    async def drain() -> None:
        begun.set()
        await asyncio.Event().wait()

    drain_on_signal(drain)
    os.kill(os.getpid(), signal.SIGINT)
    await begun.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await former.called.wait()
    assert former.seen == [signal.SIGINT]


async def test_an_ending_that_takes_too_long_is_cut_short(
    former: Former, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a client holds a connection and neither reads nor leaves."""
    monkeypatch.setattr(lifecycle, "LINGER", 0.01)

    async def drain() -> None:
        pass

    drain_on_signal(drain)
    os.kill(os.getpid(), signal.SIGTERM)
    while len(former.seen) < 2:
        former.called.clear()
        await former.called.wait()
    assert former.seen == [signal.SIGTERM, signal.SIGINT]


async def test_the_signal_goes_on_even_if_draining_fails(former: Former) -> None:
    async def drain() -> None:
        raise ZeroDivisionError

    drain_on_signal(drain)
    os.kill(os.getpid(), signal.SIGTERM)
    await former.called.wait()
    assert former.seen == [signal.SIGTERM]
