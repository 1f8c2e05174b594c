"""Drives a call in a closed loop (each client waits for its answer) or an open one (arrivals wait for nobody).

A closed loop hides queueing, since a slow server is asked less often; an open loop shows it.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp

from text2image.core.errors import Unavailable

# Draws one picture from the seed and steps that it is given; raises if there is none.
Call = Callable[[int, int], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One call: when it was sent and answered, in seconds since the run began, and how.

    It is `ok` with a picture and `refused` with a 503; with neither it failed.
    """

    sent: float
    answered: float
    ok: bool
    refused: bool = False

    @property
    def latency(self) -> float:
        return self.answered - self.sent

    def share_between(self, begin: float, end: float) -> float:
        """The part of this call's time that lies there."""
        overlap = min(end, self.answered) - max(begin, self.sent)
        return max(0.0, overlap) / self.latency


@dataclass(frozen=True, slots=True)
class Run:
    """The calls that were answered in a run and its length in seconds.

    `drawn` is how many pictures that was worth of work, where a window was cut out of a longer run: a picture counts by
    the part of its time that lies in the window, or the figure would jump by a whole one with the window's ends.
    """

    answers: Sequence[Answer]
    seconds: float
    drawn: float | None = None

    @property
    def rate(self) -> float:
        """Pictures per second."""
        drawn = self.drawn
        if drawn is None:
            drawn = sum(answer.ok for answer in self.answers)
        return drawn / self.seconds

    def goodput(self, since: float) -> float:
        """Pictures per second from `since` until the last request is sent.

        Until the first ones can be finished a server has nothing to show, and after the last arrival it empties its
        queue; neither says what it does under load.
        """
        last = max((answer.sent for answer in self.answers), default=0.0)
        drawn = sum(answer.ok and since <= answer.answered <= last for answer in self.answers)
        return drawn / max(1e-9, last - since)

    @property
    def success(self) -> float:
        """Share of the calls that were answered with a picture."""
        return sum(answer.ok for answer in self.answers) / max(1, len(self.answers))

    @property
    def mean(self) -> float:
        """Mean latency of the pictures, in seconds."""
        return statistics.fmean(self._latencies())

    def percentile(self, percent: float) -> float:
        """Latency that this share of the pictures stayed below, in seconds."""
        latencies = self._latencies()
        return latencies[min(len(latencies) - 1, int(len(latencies) * percent / 100))]

    def _latencies(self) -> list[float]:
        return sorted(answer.latency for answer in self.answers if answer.ok) or [float("nan")]


def together(runs: Sequence[Run]) -> Run:
    """Several runs as one. Its percentiles are those of all answers: a tail that is long in some of them counts."""
    return Run(
        [answer for run in runs for answer in run.answers],
        sum(run.seconds for run in runs),
        sum(run.rate * run.seconds for run in runs),
    )


class Recorder:
    """Times calls against one beginning."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._began = time.perf_counter()
        self._seeds = random.SystemRandom()
        self.answers: list[Answer] = []

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._began

    async def one(self, steps: int) -> None:
        """Calls once with a seed that was never used, so that nothing can be remembered."""
        sent = self.elapsed
        ok = refused = False
        try:
            await self._call(self._seeds.randrange(2**53), steps)
            ok = True
        except Exception as error:
            refused = _is_refusal(error)
        self.answers.append(Answer(sent, self.elapsed, ok, refused))


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status == HTTPStatus.SERVICE_UNAVAILABLE
    return isinstance(error, Unavailable)


async def closed_loop(
    call: Call,
    *,
    clients: int,
    seconds: float,
    steps: Sequence[int] = (20,),
    ramp: float | None = None,
    seed: int | None = None,
) -> Run:
    """`clients` callers, each with one call at a time, after a ramp that is not counted: half the time if not named.

    Clients begin one after the other during the ramp: all at once they would be answered all at once for ever, and
    the count would depend on where in that rhythm the window ends. The window begins when whatever was asked in the
    ramp is answered: all that is answered in it was asked while the queue was as long as it gets.

    The step counts come in blocks, each with all of them in an order of its own, so that a short window has its share
    of each. With a seed they come at random instead, as those of clients who know nothing of each other do; a server
    that answers a crowd all at once would have the same balanced batch every time otherwise.
    """
    recorder = Recorder(call)
    ramp = seconds / 2 if ramp is None else ramp
    asked = _blocks(steps) if seed is None else _at_random(steps, seed)
    begin, early = math.inf, clients

    async def client(number: int) -> None:
        nonlocal begin, early
        await asyncio.sleep(ramp * number / clients)
        is_early = True
        while recorder.elapsed < begin + seconds:
            if is_early and recorder.elapsed >= ramp:
                is_early, early = False, early - 1
                if not early:
                    begin = recorder.elapsed
            await recorder.one(next(asked))

    await asyncio.gather(*(client(number) for number in range(clients)))
    end = begin + seconds
    drawn = sum(each.share_between(begin, end) for each in recorder.answers if each.ok)
    answered = [each for each in recorder.answers if begin <= each.answered < end]
    return Run(answered, seconds, drawn)


def _blocks(steps: Sequence[int]) -> Iterator[int]:
    generator = random.Random(0)
    while True:
        yield from generator.sample(steps, len(steps))


def _at_random(steps: Sequence[int], seed: int) -> Iterator[int]:
    generator = random.Random(seed)
    while True:
        yield generator.choice(steps)


async def burst(call: Call, *, clients: int, steps: int = 20) -> Run:
    """`clients` calls at the same moment."""
    recorder = Recorder(call)
    await asyncio.gather(*(recorder.one(steps) for _ in range(clients)))
    return Run(recorder.answers, recorder.elapsed)


async def open_loop(
    call: Call, *, rate: float, seconds: float, steps: Sequence[int] = (20,), seed: int = 0
) -> Run:
    """Poisson arrivals at `rate` calls per second; returns when all of them are answered."""
    recorder = Recorder(call)
    calls: list[asyncio.Task[None]] = []
    for due, asked in arrivals(rate=rate, seconds=seconds, steps=steps, seed=seed):
        await asyncio.sleep(max(0.0, due - recorder.elapsed))
        calls.append(asyncio.create_task(recorder.one(asked)))
    await asyncio.gather(*calls)
    return Run(recorder.answers, max(seconds, recorder.elapsed))


def arrivals(
    *, rate: float, seconds: float, steps: Sequence[int], seed: int = 0
) -> Iterator[tuple[float, int]]:
    """When calls of a Poisson process are due, in seconds from its beginning, and the steps of each."""
    generator = random.Random(seed)
    due = 0.0
    while due < seconds:
        yield due, generator.choice(steps)
        due += generator.expovariate(rate)
