"""What unit and end-to-end tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import pytest
from httpx._transports import default
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests import debian
from tests.debian import pytest_sessionfinish
from tests.e2e import harness
from tests.faults import times
from tests.redis import RedisServer, redis_server

__all__ = ["pytest_sessionfinish"]

TESTS = Path(__file__).parent

# A busy machine is no reason for an example to fail.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Warm-ups measure no larger batches than these, which most tests never fill.
harness.DEFAULTS["T2I_MAX_BATCH_ROWS"] = "4"
# Tests run side by side: two teams of threads on one set of cores would wait for each other most of the time.
harness.DEFAULTS["T2I_THREADS"] = "1"
os.environ["T2I_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

# Where all tests of a folder share what takes long to start; elsewhere those of a file stay together.
TOGETHER = ("clients", "container", "cluster", "faults", "page")
# Files of tests/e2e with servers of their own alone. All others share one, which no more than two processes start.
OWN_SERVERS = ("bento", "catalogue", "families", "gpu_rehearsal", "side_by_side")
# The ports that clients know are there but once.
KNOWN_PORTS = ("first_contract", "readme")
# What takes longest begins first, so that no process is left with it at the end.
ORDER = (*TOGETHER, "deploy", "e2e", "model", "integration", "unit")


# For each call without a client httpx reads all authorities of the machine anew, 20 ms of a core thousands of times.
default.create_ssl_context = cache(default.create_ssl_context)

# The collector would look again and again through all that the tests import, which stays.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(item.path.relative_to(TESTS).parts[0]))


class Groups(LoadScopeScheduling):
    """Hands out to several processes what must stay together."""

    def _split_scope(self, nodeid: str) -> str:
        path = PurePath(nodeid.partition("::")[0]).relative_to(TESTS.name)
        folder, name = path.parts[0], path.stem.removeprefix("test_")
        if folder in TOGETHER:
            return folder
        if folder == "e2e" and name not in OWN_SERVERS:
            # About half of their work.
            return "one half" if name in KNOWN_PORTS or name < "h" else "other half"
        return path.as_posix()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return Groups(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    times.show(terminalreporter)
    debian.list_what_was_not_run(terminalreporter)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, empty."""
    with redis_server(tmp_path / "redis") as running:
        yield running
