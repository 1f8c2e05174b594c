"""A real runner around a model that only takes time, for clusters of more runners than there are cores.

`python -m tests.cluster.runner` serves as the settings say until SIGTERM, and then drains. SIGUSR1 makes its device
five times slower, as one is that throttles itself.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable

from tests.doubles import TimedModel
from text2image.core.settings import get_settings
from text2image.runner.server import RunnerServer

THROTTLED = 5.0
# Small enough that a few requests fill it.
BATCH_ROWS = 8


class WaitingModel(TimedModel):
    """The timed double, on the real clock."""

    def _take(self, seconds: float, noise: float = 0.0) -> None:
        time.sleep(seconds * self.slowdown)


async def main() -> None:
    model = WaitingModel(max_rows=BATCH_ROWS)

    def load(_: Callable[[str], None]) -> WaitingModel:
        return model

    def throttle() -> None:
        model.slowdown = THROTTLED

    settings = get_settings()
    server = RunnerServer(settings, 0, load)
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    loop.add_signal_handler(signal.SIGUSR1, throttle)
    await server.start()
    await ending.wait()
    await server.drain(settings.drain_timeout)
    await server.stop()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
