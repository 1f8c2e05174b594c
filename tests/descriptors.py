"""A process that has no file descriptor left, as a busy server at its limit."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_more_files() -> Iterator[None]:
    """No file can be opened meanwhile; those that are open stay so."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest that is free, so all below it are taken.
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
