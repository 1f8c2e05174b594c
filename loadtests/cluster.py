"""`python -m loadtests.cluster`: what one, two and three runners draw behind one gateway, and how long pictures take.

Gateway, runners and the network between them are real; the model only takes time, so that a machine of two cores can
have three devices.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from loadtests.calls import grpc_call
from loadtests.drivers import Call, Run, closed_loop, open_loop
from tests.e2e.harness import ROOT, Server, eventually, free_port, serving
from text2image.client import AsyncClient

STEPS = (5, 10, 20)
CLIENTS_PER_RUNNER = 12
# Share of the saturated rate at which the open loop asks.
SHARE = 0.75


@contextmanager
def runner(folder: Path) -> Iterator[str]:
    """The address of a runner with a model that only takes time."""
    address = f"127.0.0.1:{free_port()}"
    folder.mkdir(parents=True)
    settings = {"T2I_RUNNER_LISTEN": address, "T2I_RUNTIME_DIR": str(folder / "run")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.runner"],
            cwd=ROOT,
            env={**os.environ, **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield address
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def cluster(folder: Path, runners: int) -> Iterator[Server]:
    """A gateway that has so many runners."""
    with ExitStack() as stack:
        addresses = [stack.enter_context(runner(folder / str(index))) for index in range(runners)]
        settings = {
            "T2I_RUNNERS": ",".join(addresses),
            "T2I_CACHE_BYTES": "0",
            "T2I_SAVE_IMAGES": "0",
        }
        server = stack.enter_context(serving(Server(folder / "gateway", **settings)))
        eventually(
            lambda: server.metric("text2image_runners_ready") == runners, "every runner is ready"
        )
        yield server


async def measure(server: Server, runners: int, seconds: float, rate: float) -> tuple[Run, Run]:
    """A closed loop that is never short of work, and an open one at a share of `rate`, or of what that one had."""
    async with AsyncClient(server.address) as client:
        call: Call = grpc_call(client, "a cat")
        clients = CLIENTS_PER_RUNNER * runners
        full = await closed_loop(call, clients=clients, seconds=seconds, steps=STEPS)
        asked = SHARE * (rate * runners or full.rate)
        return full, await open_loop(call, rate=asked, seconds=2 * seconds, steps=STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a closed loop")
    seconds = parser.parse_args().seconds
    print("| runners | pictures/s | x one's | at 75 %: p50 / p95 / p99, s | answered |")
    print("|---|---|---|---|---|")
    one = 0.0
    for runners in (1, 2, 3):
        with (
            tempfile.TemporaryDirectory() as folder,
            cluster(Path(folder), runners) as server,
        ):
            full, spread = asyncio.run(measure(server, runners, seconds, one))
        one = one or full.rate
        p50, p95, p99 = (spread.percentile(share) for share in (50, 95, 99))
        print(
            f"| {runners} | {full.rate:.2f} | {full.rate / one:.2f} "
            f"| {p50:.2f} / {p95:.2f} / {p99:.2f} | {spread.success:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
