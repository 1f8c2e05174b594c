"""Processes that hang, and the moment to let them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tests.e2e.harness import Server, eventually


@contextmanager
def stopped(*processes: psutil.Process) -> Iterator[None]:
    """Hangs processes for the length of the block."""
    try:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def busy(server: Server, pictures: int) -> None:
    """Waits until both runners draw, and have so many pictures between them."""

    def both_draw() -> bool:
        active = []
        for runner in (0, 1):
            with server.engine(runner) as engine:
                active.append(engine.status().active)
        return all(active) and sum(active) == pictures

    eventually(both_draw, "both runners have work")
