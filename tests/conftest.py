"""What unit and end-to-end tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.debian import pytest_sessionfinish, pytest_terminal_summary
from tests.e2e import harness
from tests.redis import RedisServer, redis_server

__all__ = ["pytest_sessionfinish", "pytest_terminal_summary"]

# A busy machine is no reason for an example to fail.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Warm-ups measure no larger batches than these, which most tests never fill.
harness.DEFAULTS["T2I_MAX_BATCH_ROWS"] = "8"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, empty."""
    with redis_server(tmp_path / "redis") as running:
        yield running
