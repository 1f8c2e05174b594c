"""A run counts what was done in its window, and asks for every step count alike."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.drivers import Answer, Run, _blocks, closed_loop

seconds = st.floats(0, 10).map(lambda value: round(value, 3))


@given(st.lists(seconds, min_size=4, max_size=4, unique=True).map(sorted), st.data())
def test_the_parts_of_a_call_in_windows_that_follow_each_other_make_one_call(
    ends: list[float], data: st.DataObject
) -> None:
    sent = data.draw(st.sampled_from(ends[:-1]))
    answer = Answer(sent, ends[-1], ok=True)
    assert sum(answer.share_between(*window) for window in pairwise(ends)) == pytest.approx(1.0)
    assert answer.share_between(ends[-1], ends[-1] + 1) == 0.0


def test_a_window_that_cuts_a_picture_counts_a_part_of_it() -> None:
    assert Run([], 2.0, drawn=0.5).rate == 0.25
    assert Run([Answer(0.0, 1.0, ok=True)], 2.0).rate == 0.5


def test_every_step_count_is_asked_for_as_often() -> None:
    assert Counter(islice(_blocks((10, 20, 40)), 30)) == {10: 10, 20: 10, 40: 10}


def test_step_counts_at_random_are_the_same_for_the_same_seed() -> None:
    async def asked(seed: int) -> list[int]:
        order: list[int] = []

        async def call(seed: int, steps: int) -> None:
            order.append(steps)
            await asyncio.sleep(0.0005)

        await closed_loop(call, clients=1, seconds=0.05, steps=(10, 20, 40), seed=seed)
        return order[:20]

    first, again, other = (asyncio.run(asked(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert set(first) == {10, 20, 40}


def test_what_is_counted_was_asked_when_all_clients_were_there() -> None:
    ramp = 0.02
    server = asyncio.Semaphore(1)

    async def call(seed: int, steps: int) -> None:
        async with server:
            await asyncio.sleep(0.004)

    run = asyncio.run(closed_loop(call, clients=8, seconds=0.05, ramp=ramp))
    assert run.answers
    assert all(answer.sent >= ramp for answer in run.answers)


def test_what_fails_is_no_picture() -> None:
    async def call(seed: int, steps: int) -> None:
        await asyncio.sleep(0)
        raise RuntimeError

    run = asyncio.run(closed_loop(call, clients=2, seconds=0.05))
    assert run.rate == run.success == 0.0
