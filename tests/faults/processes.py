"""Processes that hang, and the moment to let them."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import psutil
from PIL.Image import Image

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


def busy(server: Server, pictures: Sequence[Future[Image]]) -> None:
    """Waits until both runners draw, and all these pictures have reached one of them."""

    def both_draw() -> bool:
        drawn = sum(picture.done() for picture in pictures)
        active = []
        for runner in (0, 1):
            with server.engine(runner) as engine:
                active.append(engine.status().active)
        return all(active) and drawn + sum(active) >= len(pictures)

    eventually(both_draw, "both runners have work")
