"""Ending well: on SIGTERM or SIGINT refuse new work, finish what was admitted, then let the process go."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType

from text2image.core.errors import Unavailable

logger = logging.getLogger(__name__)

# What a client is told to wait before it tries again, in seconds: about what a restart takes.
DRAINING_RETRY_AFTER = 10.0
# Seconds that stopped work may take to end, and then connections whose clients neither read nor leave.
LINGER = 10.0
# Of prctl(2).
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def draining() -> Unavailable:
    """The refusal of everything that comes after the signal."""
    return Unavailable(
        "the server is shutting down; try again soon, or another server",
        reason=Unavailable.DRAINING,
        retry_after=DRAINING_RETRY_AFTER,
    )


class Work:
    """What is admitted and not yet finished; closed to more once draining has begun.

    From `leaving` on balancers are told to go elsewhere.
    """

    def __init__(self) -> None:
        self.leaving = False
        self.draining = False
        # What ends each when the time to drain is over.
        self._admitted: dict[object, Callable[[], None]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._admitted)

    @contextlib.contextmanager
    def admit(self, end: Callable[[], None]) -> Iterator[None]:
        """Holds the process up while the block runs; `end` is called when the time to drain is over.

        Raises:
            Unavailable: draining has begun.
        """
        if self.draining:
            raise draining()
        admitted = object()
        self._admitted[admitted] = end
        self._idle.clear()
        try:
            yield
        finally:
            del self._admitted[admitted]
            if not self._admitted:
                self._idle.set()

    async def drain(self, grace: float) -> None:
        """Refuses new work, waits for the admitted at most `grace` seconds, and ends what is left."""
        self.leaving = self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()
        if not self._admitted:
            return
        logger.warning("stopping %d requests that did not end within %g s", len(self), grace)
        for end in list(self._admitted.values()):
            end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                await self._idle.wait()


def end_with_parent() -> None:
    """Has the kernel send this process SIGTERM when its supervisor ends, however that happens.

    Otherwise workers of a supervisor that was killed would go on, hold the ports, and be found by nobody. Only Linux
    does this.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def drain_on_signal(drain: Callable[[], Awaitable[None]]) -> None:
    """Runs `drain` at the first SIGTERM or SIGINT, and hands the signal to its former handler afterwards.

    Call it in the main thread, from the running event loop, when the handlers to be kept are in place. The former
    handler should take a SIGINT that follows as an order to end at once, as uvicorn's does: it gets one when its own
    ending takes too long, and when the second SIGINT comes from outside.
    """
    loop = asyncio.get_running_loop()
    former = {number: signal.getsignal(number) for number in _SIGNALS}
    pending: set[asyncio.Task[None]] = set()
    seen: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        handler = former[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    async def drain_and_hand_on(number: int) -> None:
        logger.info("%s: finishing what was admitted", signal.Signals(number).name)
        try:
            await drain()
        except Exception:
            logger.exception("draining failed")
        hand_on(number, None)
        await asyncio.sleep(LINGER)
        hand_on(signal.SIGINT, None)

    def start(number: int) -> None:
        pending.add(loop.create_task(drain_and_hand_on(number)))

    def handle(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) == 1:
            loop.call_soon_threadsafe(start, number)
        elif seen.count(signal.SIGINT) > 1:
            hand_on(number, frame)

    for number in _SIGNALS:
        signal.signal(number, handle)
