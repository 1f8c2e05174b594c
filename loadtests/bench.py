"""`make bench`: the server beside the bare pipeline, in one run on one machine; writes docs/benchmarks.md.

Whatever is compared is measured in turns and several times, so that a machine that slows down slows both, and ratios
are taken within a turn. What a run leaves out keeps the figures of the last one, which are in a file beside the page.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path

from loadtests import results
from loadtests.adapters import ADAPTERS_COST
from loadtests.approximations import APPROXIMATIONS
from loadtests.background import BACKGROUND
from loadtests.calls import http_session
from loadtests.flood import FLOOD
from loadtests.neighbour import NEIGHBOUR
from loadtests.overload import OVERLOAD
from loadtests.pages import machine, progress
from loadtests.poisson import POISSON
from loadtests.results import GPU, Result, Results
from loadtests.sections import FULL, QUICK, Bench, Plan, Section
from loadtests.throughput import BURSTS, LONE, THROUGHPUT
from tests.e2e.harness import ROOT, Server, serving
from text2image.client import AsyncClient

REPORT = ROOT / "docs" / "benchmarks.md"
QUICK_REPORT = ROOT / "build" / "benchmarks.md"
SECTIONS = (
    *(LONE, THROUGHPUT, NEIGHBOUR, BURSTS, POISSON, BACKGROUND, OVERLOAD, FLOOD),
    *(ADAPTERS_COST, APPROXIMATIONS),
)


def main() -> None:
    options = _options()
    # Ends like Ctrl-C does, so that no server stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    page = options.report or (QUICK_REPORT if options.quick else REPORT)
    page.parent.mkdir(parents=True, exist_ok=True)
    known = results.read(page)
    if options.gpu:
        known[GPU] = of_a_gpu(options.gpu)
        results.write(page, known, SECTIONS)
        return
    wanted = [section for section in SECTIONS if section.name in (options.only or [section.name])]
    plan = QUICK if options.quick else FULL
    command = "make bench" + (" --quick" if options.quick else "")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(serving(Server(Path(folder))))
        asyncio.run(measure(plan, wanted, server, stack, page, known, command))
    print(page.read_text())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    names = [section.name for section in SECTIONS]
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="SECTION", help=", ".join(names)
    )
    parser.add_argument(
        "--gpu", type=Path, metavar="FILE", help="put in what loadtests/gpu.sh measured, no more"
    )
    parser.add_argument(
        "--report",
        type=Path,
        help="the page (docs/benchmarks.md, of a short run build/benchmarks.md)",
    )
    return parser.parse_args()


async def measure(
    plan: Plan,
    wanted: Sequence[Section],
    server: Server,
    stack: ExitStack,
    page: Path,
    known: Results,
    command: str,
) -> None:
    """One section after the other; each is on the page as soon as it is measured."""
    async with http_session(timeout=3600) as http, AsyncClient(server.address) as grpc:
        bench = Bench(plan, server, http, grpc, stack, page)
        for section in wanted:
            began = time.monotonic()
            figures = await section.measure(bench)
            known[section.name] = Result(f"{date.today():%Y-%m-%d}", machine(), command, figures)
            results.write(page, known, SECTIONS)
            progress(f"{section.name}: measured in {time.monotonic() - began:.0f} s")


def of_a_gpu(path: Path) -> Result:
    """What `loadtests/gpu.sh` wrote."""
    told = json.loads(path.read_text())
    return Result(told["measured"], told["machine"], "loadtests/gpu.sh", told["figures"])


if __name__ == "__main__":
    main()
