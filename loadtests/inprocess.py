"""What the server is measured against, each in its own process: the bare pipeline, and the engine without a server."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PROMPT = "a cat on a blue background"
STEPS = 20
GUIDANCE_SCALE = 5.0


def bare_pipeline(connection: Connection, folder: Path | None = None, device: str = "auto") -> None:
    """Answers each batch size and step count with the seconds that the diffusers pipeline took for it.

    It draws with the model in `folder`, or the embedded one, on the `device` that T2I_DEVICE would name so.
    """
    from loadtests.baselines.pipeline import Pipeline

    pipeline = Pipeline(folder=folder, device=device)

    def draw(batch: int, steps: int) -> float:
        requests = [{"text": PROMPT, "seed": seed} for seed in range(batch)]
        started = time.perf_counter()
        pipeline.images(requests, steps, GUIDANCE_SCALE)
        return time.perf_counter() - started

    _answer(connection, draw)


def engine(connection: Connection) -> None:
    """Answers each request with the seconds that the engine took for one picture, without a server around it."""
    import asyncio

    from text2image.core.messages import RequestParams, State, StreamOptions
    from text2image.core.settings import Settings
    from text2image.core.validation import resolve
    from text2image.engine.engine import Engine
    from text2image.engine.models.loading import load_model

    loop = asyncio.new_event_loop()
    drawer = Engine(lambda report: load_model(Settings(), 0, report))

    async def ready() -> None:
        drawer.start()
        async for status in drawer.watch():
            if status.state is State.READY:
                return

    async def draw_one(steps: int) -> None:
        params = RequestParams(prompt=PROMPT, steps=steps, guidance_scale=GUIDANCE_SCALE)
        request = resolve(params, drawer.model)
        async for _ in drawer.generate(request, StreamOptions(), time_limit=300):
            pass

    def draw(batch: int, steps: int) -> float:
        started = time.perf_counter()
        loop.run_until_complete(draw_one(steps))
        return time.perf_counter() - started

    loop.run_until_complete(ready())
    draw(1, STEPS)
    _answer(connection, draw)


def _answer(connection: Connection, draw: Callable[[int, int], float]) -> None:
    connection.send("ready")
    while (asked := connection.recv()) is not None:
        connection.send(draw(*asked))


class Worker:
    """One of the functions above in a fresh process; idle unless it is asked to draw.

    Raises:
        EOFError: the process has ended; it has said why on standard error.
    """

    def __init__(self, target: Callable[[Connection], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs,), daemon=True)
        self._process.start()
        # Theirs alone, so that we hear of it when they end.
        theirs.close()
        self._connection.recv()
        # A call that nobody waits for any more still takes its answer before the next one asks.
        self._lock = threading.Lock()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self._connection.send(None)
        self._process.join()

    def seconds(self, batch: int = 1, steps: int = STEPS) -> float:
        """Seconds to draw a batch."""
        with self._lock:
            self._connection.send((batch, steps))
            seconds: float = self._connection.recv()
        return seconds
