"""`make load`: users on all transports, then arrivals that wait for nobody, and a report of both.

The server that answers at HOST and PORT is loaded. Where none answers on this machine, one is started for the run.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from loadtests import occupancy, records, report
from loadtests.calls import http_call, http_session
from loadtests.drivers import open_loop
from loadtests.figures import Figures, Level, Offered, broken
from loadtests.mixes import PROMPTS
from loadtests.pages import machine, progress
from loadtests.target import authorities, grpc_address, http_url, is_local, key_headers
from tests.e2e.harness import Server, serving
from text2image.client import Client
from text2image.core.messages import ModelInfo

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "build" / "load"
USERS = {"HTTP": "HttpVisitor", "gRPC": "GrpcVisitor"}
LEVELS = (1, 5, 10, 20, 50, 100)
# Offered rates of the open loop, as shares of the capacity.
OFFERED = (0.5, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 3.0)
QUICK_LEVELS, QUICK_OFFERED = (1, 4, 8), (0.5, 1.0, 2.0)
# Clients of the open loop wait no longer than this, or so many lone latencies where that is more.
PATIENCE, PATIENCE_LATENCIES = 10.0, 6.0
# A run that has ended waits for the answers to its last requests.
LAST_ANSWERS = 900


@dataclass(frozen=True, slots=True)
class Target:
    """The server under load."""

    url: str
    address: str
    steps: int


def main() -> None:
    options = _options()
    # Ends like Ctrl-C does, so that no server stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    seconds = options.seconds or (4.0 if options.quick else 20.0)
    levels = options.users or (QUICK_LEVELS if options.quick else LEVELS)
    shares = options.offered or (QUICK_OFFERED if options.quick else OFFERED)
    with found_or_started() as (url, address):
        with Client(address) as client:
            model = client.model()
        target = Target(url, address, model.steps)
        figures = Figures(_title(model, url), machine(), seconds)
        for transport in options.transports:
            measure_levels(figures, target, transport, levels)
        measure_offered(figures, target, shares)
    written = report.write(figures, options.output)
    print(report.told(figures))
    print(f"written: {written}")
    lines = broken(figures.levels, max_failures=options.max_failures, max_p95=options.max_p95)
    for line in lines:
        print(f"threshold: {line}")
    raise SystemExit(1 if lines else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make load", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    parser.add_argument(
        "--seconds", type=float, help="how long each level and each rate is measured (20)"
    )
    parser.add_argument("--users", type=int, nargs="+", help="users at once (1 5 10 20 50 100)")
    parser.add_argument(
        "--transports",
        nargs="+",
        choices=tuple(USERS),
        default=tuple(USERS),
        help="what users speak (HTTP gRPC)",
    )
    parser.add_argument(
        "--offered", type=float, nargs="+", help="rates of the open loop, in capacities (0.5 to 3)"
    )
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder of the report (build/load)"
    )
    parser.add_argument(
        "--max-failures",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="exit with 1 if more of any level's requests fail, 0 to 1 (0)",
    )
    parser.add_argument(
        "--max-p95",
        type=float,
        metavar="SECONDS",
        help="exit with 1 if any level's 95th percentile is longer",
    )
    return parser.parse_args()


def _title(model: ModelInfo, url: str) -> str:
    return (
        f"{model.id} {model.width}x{model.height}, {model.steps} steps, on {model.device} "
        f"({model.dtype}), at {url}"
    )


@contextmanager
def found_or_started() -> Iterator[tuple[str, str]]:
    """URL and gRPC address of the server to load.

    Raises:
        SystemExit: none answers, and it should be on another machine or serve over TLS.
    """
    url = http_url()
    try:
        httpx.get(f"{url}/livez", verify=authorities() or True, timeout=10)
    except httpx.TransportError as error:
        if not is_local() or authorities():
            raise SystemExit(
                f"no server answers at {url} ({error}); start one there, or name another with "
                "HOST, PORT and GRPC_PORT"
            ) from None
        progress(f"no server answers at {url}: one is started for this run")
    else:
        progress(f"the server at {url} is loaded")
        yield url, grpc_address()
        return
    # It remembers no picture, and leaves none behind.
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Server(Path(folder), T2I_CACHE_BYTES="0")) as server,
    ):
        yield server.url, server.address


def measure_levels(figures: Figures, target: Target, transport: str, levels: Sequence[int]) -> None:
    """Locust at each number of users, fewest first."""
    for users in sorted(levels):
        level = _level(figures, target, transport, users)
        if not level.run.success:
            raise SystemExit(f"no picture came back over {transport}: the server's log says why")
        figures.levels.append(level)
        progress(
            f"{users} users over {transport}: {level.run.rate:.2f} pictures/s, "
            f"{level.run.mean:.2f} s on average, {level.run.success:.1%} answered"
        )


def _level(figures: Figures, target: Target, transport: str, users: int) -> Level:
    """One run of Locust. Its users come one by one while the first are served, and are counted from then on."""
    # As long as it takes to serve each of them once; unknown for the first level.
    round_seconds = users / figures.capacity if figures.levels else 0.0
    ramp = max(1.0, round_seconds)
    seconds = max(figures.seconds, round_seconds)
    with (
        tempfile.TemporaryDirectory() as folder,
        httpx.Client(verify=authorities() or True, headers=key_headers(), timeout=10) as client,
        occupancy.Sampler(client, target.url) as sampler,
    ):
        record = Path(folder, "requests")
        _locust(target, USERS[transport], users, users / ramp, ramp + seconds, record)
        answers = records.read(record)
    begin = min((answer.sent for answer in answers), default=0.0) + (ramp if users > 1 else 0.0)
    run = records.window(answers, begin, seconds)
    rows = occupancy.between(sampler.readings, begin, begin + seconds)
    return Level(transport, users, run, rows)


def _locust(
    target: Target, visitor: str, users: int, rate: float, seconds: float, record: Path
) -> None:
    """Runs Locust to its end.

    Raises:
        RuntimeError: it could not run.
    """
    prefix = OUTPUT / "locust" / f"{visitor}-{users}"
    prefix.parent.mkdir(parents=True, exist_ok=True)
    options = {
        "--host": target.url,
        "--grpc": target.address,
        "--users": users,
        "--spawn-rate": rate,
        "--run-time": f"{math.ceil(seconds)}s",
        "--stop-timeout": LAST_ANSWERS,
        "--steps": target.steps,
        "--record": record,
        "--csv": prefix,
        "--exit-code-on-error": 0,
        "--loglevel": "WARNING",
    }
    words = [str(word) for pair in options.items() for word in pair]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", visitor),
            *("--headless", "--only-summary", *words),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"locust ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def measure_offered(figures: Figures, target: Target, shares: Sequence[float]) -> None:
    """The open loop at each share of the capacity, by clients that say how long they wait."""
    figures.patience = max(PATIENCE, PATIENCE_LATENCIES * figures.lone)
    for share in sorted(shares):
        offered = asyncio.run(_offered(figures, target, share))
        figures.offered.append(offered)
        progress(
            f"{share:.0%} of {figures.capacity:.2f} pictures/s offered: {offered.goodput:.2f} drawn, "
            f"p99 {offered.run.percentile(99):.2f} s, {offered.refused:.0%} refused"
        )


async def _offered(figures: Figures, target: Target, share: float) -> Offered:
    headers = {**key_headers(), "X-Request-Timeout": f"{figures.patience:g}"}
    rate = share * figures.capacity
    # Long enough for the first to be answered and as long again.
    seconds = figures.seconds + 2 * figures.lone
    with (
        httpx.Client(verify=authorities() or True, headers=key_headers(), timeout=10) as client,
        occupancy.Sampler(client, target.url) as sampler,
    ):
        async with http_session(LAST_ANSWERS, authorities()) as asking:
            call = http_call(asking, target.url, headers, text=PROMPTS[0])
            begin = time.time()
            run = await open_loop(call, rate=rate, seconds=seconds, steps=(target.steps,))
    rows = occupancy.between(sampler.readings, begin, begin + seconds)
    return Offered(share, rate, run, rows)


if __name__ == "__main__":
    main()
