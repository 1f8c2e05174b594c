"""Starts the baselines as processes of their own, and lets them sleep while others are measured."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from loadtests.drivers import Call
from tests.e2e.harness import ROOT, free_port, is_ready

# Where `make compare` puts packages that only a baseline needs.
PACKAGES = Path(sys.prefix, "baselines")
START_SECONDS = 240.0
STOP_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Baseline:
    """A server to compare with; `command` takes its port as the last word."""

    name: str
    command: tuple[str, ...]
    takes_lists: bool = False


THREAD_POOL = Baseline("thread pool of 3", ("-m", "loadtests.baselines.pool"))
ADAPTIVE = Baseline(
    "BentoML adaptive batching",
    ("-m", "bentoml", "serve", "loadtests.baselines.adaptive:Adaptive", "--port"),
    takes_lists=True,
)
LITSERVE = Baseline("LitServe", ("-m", "loadtests.baselines.lit"))
BASELINES = (THREAD_POOL, ADAPTIVE, LITSERVE)


class Running:
    """A baseline's server."""

    def __init__(self, baseline: Baseline, folder: Path) -> None:
        self.baseline = baseline
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = folder / f"{baseline.command[-1]}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *baseline.command, self.url.rpartition(":")[2]],
                cwd=ROOT,
                env=_environment(folder),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Waits for the model to be loaded and warmed up.

        Raises:
            RuntimeError: it ended, or takes too long; its log is in the text.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if is_ready(self.url):
                return
            time.sleep(0.1)
        raise RuntimeError(
            f"{self.baseline.name} is not ready:\n{self._log.read_text(errors='replace')}"
        )

    def call(self, session: aiohttp.ClientSession, fields: dict[str, Any]) -> Call:
        """A picture from it; `fields` go into each request."""

        async def call(seed: int, steps: int) -> object:
            request = {"seed": seed, "steps": steps, **fields}
            body = {"requests": [request]} if self.baseline.takes_lists else request
            async with session.post(f"{self.url}/generate", json=body) as answer:
                told = await answer.json()
            return told[0] if self.baseline.takes_lists else told["image_base64"]

        return call

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Lets it run, and stops it afterwards: some look into their queue all the time, also when it is empty."""
        for process in self._family():
            process.resume()
        try:
            yield
        finally:
            self.sleep()

    def sleep(self) -> None:
        """Stops all its processes until it is awakened."""
        for process in self._family():
            process.suspend()

    def end(self) -> None:
        """Ends all its processes."""
        family = self._family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self._process.terminate()
        _, left = psutil.wait_procs(family, STOP_SECONDS)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _family(self) -> Sequence[psutil.Process]:
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _environment(folder: Path) -> dict[str, str]:
    paths = f"{ROOT}{os.pathsep}{PACKAGES}"
    return {
        **os.environ,
        "PYTHONPATH": paths,
        "HF_HUB_OFFLINE": "1",
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }


@contextmanager
def running(baselines: Sequence[Baseline], folder: Path) -> Iterator[list[Running]]:
    """All of them, ready and asleep."""
    started: list[Running] = []
    try:
        for baseline in baselines:
            started.append(Running(baseline, folder))
        for server in started:
            server.wait_until_ready()
            server.sleep()
        yield started
    finally:
        for server in started:
            server.end()
