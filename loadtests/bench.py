"""`make bench`: the server beside the bare pipeline, in one run on one machine; writes docs/benchmarks.md.

Whatever is compared is measured in turns and several times, so that a machine that slows down slows both, and ratios
are taken within a turn. Figures are medians, with the lowest and the highest of the turns behind them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from loadtests import flood, overload
from loadtests.calls import grpc_call, http_call, http_session
from loadtests.drivers import Call, Run, burst, closed_loop, open_loop
from loadtests.inprocess import GUIDANCE_SCALE, PROMPT, STEPS, Worker, bare_pipeline, engine
from loadtests.pages import machine, progress, spread, table
from tests.e2e.harness import Server, serving
from text2image.client import AsyncClient

REPORT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BATCHES = (1, 2, 4, 8, 16)
CONCURRENCY = (1, 5, 10, 20, 50, 100)
# More than fit in a batch, so that there is always one waiting.
SATURATING_CLIENTS = 40
# The bound of the server figure: p99 below so many lone latencies.
LATENCY_BOUND = 4.0
# Offered rates of the open loop, as shares of the saturation throughput.
OFFERED = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
PLOT = "overload.png"
# Columns that `latencies` fills.
LATENCIES = ("success", "mean, s", "p50, s", "p95, s", "p99, s")
# A seed that was never used draws a picture that nobody can remember.
SEEDS = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure."""

    turns: int
    lone_calls: int
    seconds: float
    open_seconds: float
    storm_seconds: float


FULL = Plan(turns=3, lone_calls=5, seconds=30.0, open_seconds=30.0, storm_seconds=120.0)
QUICK = Plan(turns=2, lone_calls=2, seconds=6.0, open_seconds=10.0, storm_seconds=24.0)


@dataclass(slots=True)
class Figures:
    """Everything that was measured: seconds, and pictures per second."""

    lone: dict[str, list[float]] = field(default_factory=dict)
    bare: dict[int, list[float]] = field(default_factory=dict)
    served: dict[str, list[float]] = field(default_factory=dict)
    bursts: dict[int, Run] = field(default_factory=dict)
    offered: dict[float, Run] = field(default_factory=dict)
    storm: overload.Storm | None = None
    floods: list[flood.Flood] = field(default_factory=list)

    def best_batch(self) -> int:
        """The batch size at which the bare pipeline draws most pictures per second."""
        return max(self.bare, key=lambda batch: statistics.median(self.bare[batch]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    parser.add_argument("--report", type=Path, default=REPORT, help="file to write")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    figures = Figures()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Server(Path(folder))) as server,
        Worker(bare_pipeline) as bare,
        Worker(engine) as alone,
    ):
        asyncio.run(measure(plan, figures, server, bare, alone))
    options.report.write_text(report(figures, options.quick))
    if figures.storm:
        overload.draw(figures.storm, options.report.with_name(PLOT))
    print(options.report.read_text())


async def measure(
    plan: Plan, figures: Figures, server: Server, bare: Worker, alone: Worker
) -> None:
    """Fills the figures, one kind after the other."""
    async with (
        http_session(timeout=600) as http,
        AsyncClient(server.address) as grpc,
    ):
        asked = {"text": PROMPT, "guidance_scale": GUIDANCE_SCALE}
        calls = {
            "HTTP": http_call(http, server.url, **asked),
            "gRPC": grpc_call(grpc, PROMPT, guidance_scale=GUIDANCE_SCALE),
        }
        await measure_lone(plan, figures, calls, bare, alone)
        await measure_throughput(plan, figures, calls, bare)
        for clients in CONCURRENCY:
            figures.bursts[clients] = await burst(calls["HTTP"], clients=clients)
            progress(f"{clients} at once: {figures.bursts[clients].mean:.2f} s on average")
        saturation = statistics.median(figures.served["HTTP"])
        for share in OFFERED:
            run = await open_loop(calls["HTTP"], rate=share * saturation, seconds=plan.open_seconds)
            figures.offered[share] = run
            progress(f"offered {share:.0%} of saturation: p99 {run.percentile(99):.2f} s")
        patience = {"X-Request-Timeout": f"{overload.PATIENCE:g}"}
        impatient = http_call(http, server.url, patience, **asked)
        figures.storm = await overload.measure(
            calls["HTTP"], impatient, server, seconds=plan.storm_seconds
        )
        for turn in range(plan.turns):
            figures.floods.append(
                await flood.measure(calls["HTTP"], server, saturation, seconds=plan.seconds)
            )
            progress(f"flood, turn {turn + 1}: {figures.floods[-1]}")


async def measure_lone(
    plan: Plan, figures: Figures, calls: dict[str, Call], bare: Worker, alone: Worker
) -> None:
    """One picture at a time: in process without and with the engine, over HTTP and over gRPC, in turns."""
    for turn in range(plan.turns):
        times: dict[str, list[float]] = {}
        for _ in range(plan.lone_calls):
            times.setdefault("bare pipeline", []).append(await asyncio.to_thread(bare.seconds))
            times.setdefault("engine in process", []).append(await asyncio.to_thread(alone.seconds))
            for name, call in calls.items():
                started = time.perf_counter()
                await call(SEEDS.randrange(2**53), STEPS)
                times.setdefault(name, []).append(time.perf_counter() - started)
        for name, values in times.items():
            figures.lone.setdefault(name, []).append(statistics.median(values))
        progress(f"lone, turn {turn + 1}: " + told(figures.lone))


async def measure_throughput(
    plan: Plan, figures: Figures, calls: dict[str, Call], bare: Worker
) -> None:
    """Pictures per second: the bare pipeline at each batch size, then the saturated server, in turns."""
    for turn in range(plan.turns):
        for batch in BATCHES:
            seconds = await asyncio.to_thread(bare.seconds, batch)
            figures.bare.setdefault(batch, []).append(batch / seconds)
        for name, call in calls.items():
            run = await closed_loop(call, clients=SATURATING_CLIENTS, seconds=plan.seconds)
            figures.served.setdefault(name, []).append(run.rate)
        progress(f"throughput, turn {turn + 1}: " + told(figures.served))


def told(series: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1]:.3f}" for name, values in series.items())


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios turn by turn."""
    return [one / other for one, other in zip(above, below, strict=True)]


def report(figures: Figures, quick: bool) -> str:
    """The figures as a page."""
    saturation = statistics.median(figures.served["HTTP"])
    bound = LATENCY_BOUND * statistics.median(figures.lone["HTTP"])
    command = "make bench" + (" (--quick)" if quick else "")
    throughput = {
        **{f"bare pipeline, batch {batch}": values for batch, values in figures.bare.items()},
        **{
            f"server over {name}, {SATURATING_CLIENTS} clients": values
            for name, values in figures.served.items()
        },
    }
    bursts = (
        (clients, *latencies(run), f"{run.rate:.2f}") for clients, run in figures.bursts.items()
    )
    offered = ((f"{share:.0%}", *latencies(run)) for share, run in figures.offered.items())
    return f"""# Benchmarks

Embedded model, {STEPS} steps, guidance scale {GUIDANCE_SCALE:g}, 128 x 128. {machine()}.
{date.today():%Y-%m-%d}, `{command}`. Client, gateway and runner share the cores. Medians of the
turns, lowest and highest in brackets.

## Yardsticks

{table(("ratio", "measured", "aim"), yardsticks(figures, bound))}

## A lone picture, seconds

{table(("", ""), ((name, spread(values, 3)) for name, values in figures.lone.items()))}

## Throughput, pictures per second

{table(("", ""), ((name, spread(values)) for name, values in throughput.items()))}

## At the same moment, over HTTP

{table(("requests", *LATENCIES, "pictures/s"), bursts)}

## Open loop, Poisson arrivals over HTTP

Shares of the saturation throughput of {saturation:.2f} pictures/s; the bound on p99 is {bound:.2f} s.

{table(("offered", *LATENCIES), offered)}

{overload.section(figures.storm, PLOT) if figures.storm else ""}

{flood.section(figures.floods) if figures.floods else ""}"""


def yardsticks(figures: Figures, bound: float) -> list[tuple[str, str, str]]:
    """The ratios that the server is judged by: name, figure and aim. `bound` is p99's, in seconds."""
    best = figures.best_batch()
    within = list(
        itertools.takewhile(
            lambda share: figures.offered[share].percentile(99) < bound, figures.offered
        )
    )
    throughput = [
        (
            f"throughput: saturated over {name} ÷ bare pipeline's best (batch {best})",
            spread(ratios(figures.served[name], figures.bare[best])),
            "≥ 1",
        )
        for name in figures.served
    ]
    overhead = [
        (
            f"overhead: lone over {name} ÷ {base}",
            spread(ratios(figures.lone[name], figures.lone[base])),
            "≤ 1.03",
        )
        for name in figures.served
        for base in ("engine in process", "bare pipeline")
    ]
    server = (
        f"server ÷ offline: highest Poisson rate with p99 < {LATENCY_BOUND:g} × lone ÷ saturation",
        f"{max(within):.2f}" if within else f"below {min(OFFERED):.2f}",
        "≥ 0.95",
    )
    return [*throughput, *overhead, server]


def latencies(run: Run) -> tuple[str, ...]:
    """Success, mean and percentiles, as cells."""
    seconds = (run.mean, *(run.percentile(percent) for percent in (50, 95, 99)))
    return f"{run.success:.0%}", *(f"{value:.2f}" for value in seconds)


if __name__ == "__main__":
    main()
