"""BentoML's adaptive batching: `bentoml serve loadtests.baselines.adaptive:Adaptive`.

A batchable API as BentoML documents it: a list of requests in, a list of results out. Batches end as a whole. It is
asynchronous and draws in a thread of its own, in which the model was loaded too; a plain one would draw in a thread of
BentoML's and be half as fast on a CPU.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bentoml

from loadtests.baselines import MAX_BATCH, Request

# Its dispatcher answers 503 to what it expects to be late, and guesses badly when calls take seconds: nothing is late.
NEVER_LATE_MS = 3_600_000


def _loaded() -> Any:
    # Here, since the process that starts the worker imports this file too and needs no torch.
    from loadtests.baselines.pipeline import Pipeline

    return Pipeline()


@bentoml.service(name="adaptive", workers=1, traffic={"timeout": 3600})
class Adaptive:
    """The pipeline behind adaptive batching."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._pipeline = self._thread.submit(_loaded).result()

    @bentoml.api(
        batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=NEVER_LATE_MS, route="/generate"
    )
    async def generate(self, requests: list[Request]) -> list[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._pipeline.draw, requests)
