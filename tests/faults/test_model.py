"""Numbers that are none and memory that is not there: one request fails in words, its neighbours notice nothing."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import pytest

from tests.e2e.test_pictures import assert_same
from tests.faults.asking import LONG, LONGEST, ask_both, draw, is_idle, post
from tests.faults.conftest import LARGEST, Timed
from tests.faults.models import POISON
from tests.faults.normality import Normality
from text2image.core.errors import Internal, Unavailable


def test_a_latent_that_is_not_a_number_is_an_error_with_an_id(fragile: Normality) -> None:
    server = fragile.server
    answer = post(server, 1, f"a {POISON}", steps=2)
    assert answer.status_code == 500
    with server.client() as client, pytest.raises(Internal) as raised:
        client.generate(f"a {POISON}", steps=2)
    for message in (answer.json()["message"], raised.value.message):
        (error_id,) = re.findall(r"quote id (\w+)", message)
        assert f"internal error {error_id}" in server.log
    fragile.returns()


def test_a_poisoned_request_in_a_batch_leaves_its_neighbours_as_they_are(
    fragile: Normality, timed: Timed
) -> None:
    server = fragile.server
    seeds = range(10, 14)
    alone = [draw(server, seed, steps=LONG) for seed in seeds]
    counters = server.wait_for(is_idle, "the engine is idle").counters
    with ThreadPoolExecutor() as pool:
        poisoned = pool.submit(post, server, 3, f"a {POISON}", steps=LONGEST)
        server.wait_for(lambda status: status.active == 1, "the poisoned one is in flight")
        neighbours = ask_both(server, pool, seeds, steps=LONG)
        server.wait_for(lambda status: status.active > 1, "a neighbour is in flight beside it")
        for neighbour, expected in zip(neighbours, alone, strict=True):
            assert_same(neighbour.result(), expected)
        assert poisoned.result().status_code == 500
    after = server.wait_for(is_idle, "the engine is idle").counters
    assert after.batches - counters.batches < after.sample_steps - counters.sample_steps
    assert after.failed == counters.failed + 1
    fragile.returns()


@contextmanager
def without_room(process: psutil.Process, spare: int = 192 << 20) -> Iterator[None]:
    """Lets a process have no more than `spare` bytes of new memory: more than a new thread reserves."""
    room = process.memory_info().vms + spare
    process.rlimit(psutil.RLIMIT_AS, (room, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_picture_that_no_memory_is_left_for_fails_alone(fragile: Normality, timed: Timed) -> None:
    server = fragile.server
    runner = server.runner()
    alone = draw(server, 20, steps=LONG)
    large = {"width": LARGEST, "height": LARGEST, "steps": 1, "guidance_scale": 0.0}
    with without_room(runner), ThreadPoolExecutor() as pool:
        neighbour = pool.submit(draw, server, 20, steps=LONG)
        server.wait_for(lambda status: status.active == 1, "the neighbour is in flight")
        answer = post(server, 21, **large)
        assert (answer.status_code, answer.json()["reason"]) == (503, Unavailable.FULL)
        assert f"not enough device memory for a picture of {LARGEST}x{LARGEST}" in answer.text
        assert int(answer.headers["Retry-After"]) > 0
        assert_same(neighbour.result(), alone)
    with timed("no memory for a picture, then there is: it is drawn"):
        assert draw(server, 21, **large).size == (LARGEST, LARGEST)
    fragile.returns()
    assert server.runner().pid == runner.pid
