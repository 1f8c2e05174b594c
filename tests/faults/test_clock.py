"""A wall clock that jumps while requests are in flight: deadlines are kept on a clock that does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests import debian
from tests.e2e.harness import Server, serving
from tests.e2e.test_pictures import assert_same
from tests.faults.asking import LONG, ask_both, draw, post
from tests.faults.conftest import ALONE, Timed
from tests.faults.normality import Normality

HOUR = 3600


class WallClock:
    """The clock on the wall of the processes that see it; monotonic clocks are left alone."""

    def __init__(self, folder: Path) -> None:
        libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not libraries:
            debian.without("faketime")
        self._file = folder / "clock"
        self.environment = {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Each import asks for the times of files, and each time would be read from the clock anew.
            "NO_FAKE_STAT": "1",
        }
        self.set(0)

    def set(self, seconds: int) -> None:
        """Makes the clock fast by so many seconds, or slow by less than none."""
        draft = self._file.with_suffix(".new")
        draft.write_text(f"{seconds:+d}\n")
        draft.replace(self._file)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> WallClock:
    return WallClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def clocked(clock: WallClock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Normality]:
    """A server that goes by that clock, with limits and a drain that count time too."""
    folder = tmp_path_factory.mktemp("clocked")
    settings = {"T2I_RATE_LIMIT": "1000000/hour", **ALONE, **clock.environment}
    with serving(Server(folder, **settings)) as server:
        yield Normality(server)


def shown(server: Server) -> int:
    """The time by the server's clock: in the dialect of OpenAI it stands in every answer."""
    url = f"{server.url}/v1/images/generations"
    answer = httpx.post(url, json={"prompt": "a cat", "steps": 1}, timeout=120)
    return int(answer.json()["created"])


def test_a_clock_that_jumps_ends_no_request_and_delays_none(
    clocked: Normality, clock: WallClock, timed: Timed
) -> None:
    server = clocked.server
    seeds = range(10, 12)
    before = [draw(server, seed, steps=LONG) for seed in seeds]
    for offset in (HOUR, -HOUR):
        with ThreadPoolExecutor() as pool:
            asked = ask_both(server, pool, seeds, steps=LONG)
            server.wait_for(lambda status: status.active == len(seeds), "all are in flight")
            with timed(f"the clock jumps by {offset:+d} s: requests in flight answered"):
                clock.set(offset)
                for future, expected in zip(asked, before, strict=True):
                    assert_same(future.result(), expected)
        assert abs(shown(server) - (time.time() + offset)) < HOUR / 2
        assert post(server, 20, steps=150, timeout=0.2).status_code == 504
    clock.set(0)
    clocked.returns()
