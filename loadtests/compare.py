"""`make compare`: this service beside other designs on the same model and machine; writes docs/comparison.md.

All servers run for the whole time, and one after the other is measured under each load while the others sleep. What
was measured once is measured again in the next round, as long as there is time; arrivals and step counts are the same
for all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from loadtests.baselines import MAX_BATCH
from loadtests.baselines.servers import BASELINES, PACKAGES, running
from loadtests.calls import http_call, http_session
from loadtests.comparison import OURS, Comparison, Load, Mix, page
from loadtests.drivers import Call, closed_loop, open_loop
from loadtests.inprocess import GUIDANCE_SCALE, PROMPT, Worker, bare_pipeline
from loadtests.pages import machine, progress
from tests.e2e.harness import Server, serving

REPORT = Path(__file__).parents[1] / "docs" / "comparison.md"
MIXES = (Mix("uniform, 20 steps", (20,)), Mix("mixed, 10, 20 and 40 steps", (10, 20, 40)))
# In this order, so that what matters most is measured most often when the time is up in the middle of a round.
LOADS = (
    Load(share=0.8),
    Load(clients=8),
    Load(share=0.95),
    Load(clients=1),
    Load(share=0.5),
    Load(clients=32),
)
QUICK_LOADS = (Load(share=0.8), Load(clients=4))
SATURATING_CLIENTS = 40
# One load is measured for this part of all the time, and no shorter than that. A round has 48 of them, each with a ramp
# and a queue to empty, and takes a quarter of an hour or longer: repeating it tells more than longer ones do.
PARTS = 600
SHORTEST = 4.0
# Arrivals at random are measured longer, since chance has a part in them.
OPEN_FACTOR = 2.0
LONE_CALLS = 9
# Those who group by steps draw the longest in a batch of their own, now and then. A window for fewer pictures than this
# may miss it, and p95 is then that of the others.
CROWD_PICTURES = 60


@dataclass(frozen=True, slots=True)
class Contender:
    """A server to be measured."""

    name: str
    call: Call
    awake: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: until `ends` on the monotonic clock, at most `rounds` times, `seconds` at a time."""

    seconds: float
    ends: float
    rounds: int
    loads: Sequence[Load]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make compare", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to measure (30)")
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    parser.add_argument("--report", type=Path, default=REPORT, help="file to write")
    options = parser.parse_args()
    # Ends like Ctrl-C does, so that no server stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    minutes = 0.0 if options.quick else options.minutes
    plan = Plan(
        seconds=max(SHORTEST, 60 * minutes / PARTS),
        ends=began + 60 * minutes,
        rounds=1 if options.quick else 100,
        loads=QUICK_LOADS if options.quick else LOADS,
    )
    comparison = Comparison(MAX_BATCH)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(serving(Server(folder, T2I_CACHE_BYTES="0")))
        baselines = stack.enter_context(running(BASELINES, folder))
        bare = stack.enter_context(Worker(bare_pipeline))

        async def measured() -> None:
            async with http_session(timeout=3600) as client:
                asked = {"text": PROMPT, "guidance_scale": GUIDANCE_SCALE}
                contenders = [
                    Contender(OURS, http_call(client, server.url, **asked)),
                    *(
                        Contender(each.baseline.name, each.call(client, asked), each.awake)
                        for each in baselines
                    ),
                ]
                await measure(plan, comparison, contenders, bare)

        asyncio.run(measured())
    minutes_taken = (time.monotonic() - began) / 60
    options.report.write_text(page(comparison, _head(plan, minutes_taken, options.quick)))
    print(options.report.read_text())


async def measure(
    plan: Plan, comparison: Comparison, contenders: Sequence[Contender], bare: Worker
) -> None:
    """Fills the comparison: our capacity, then rounds until the time is up; the first of them is always finished."""
    ours = next(contender for contender in contenders if contender.name == OURS)
    for mix in MIXES:
        run = await closed_loop(
            ours.call, clients=SATURATING_CLIENTS, seconds=3 * plan.seconds, steps=mix.steps
        )
        comparison.capacity[mix.name] = run.rate
        progress(f"capacity, {mix.name}: {run.rate:.2f} pictures/s")
    for number in range(plan.rounds):
        if number and time.monotonic() > plan.ends:
            return
        for mix in MIXES:
            await asyncio.to_thread(_measure_limit, comparison, mix, bare)
        for load in plan.loads:
            for mix in MIXES:
                if number and time.monotonic() > plan.ends:
                    return
                await _measure_load(plan, comparison, contenders, mix, load, number)


def _measure_limit(comparison: Comparison, mix: Mix, bare: Worker) -> None:
    """The pipeline without a server: one picture, and full batches of each step count."""
    lone = statistics.fmean(bare.seconds(1, steps) for steps in mix.steps)
    full = sum(bare.seconds(comparison.batch, steps) for steps in mix.steps)
    comparison.lone.setdefault(mix.name, []).append(lone)
    comparison.limit.setdefault(mix.name, []).append(comparison.batch * len(mix.steps) / full)


async def _measure_load(
    plan: Plan,
    comparison: Comparison,
    contenders: Sequence[Contender],
    mix: Mix,
    load: Load,
    number: int,
) -> None:
    """One load on each server in turn. Who is first changes from round to round."""
    turn = number % len(contenders)
    for contender in (*contenders[turn:], *contenders[:turn]):
        with contender.awake():
            if load.share:
                run = await open_loop(
                    contender.call,
                    rate=load.share * comparison.capacity[mix.name],
                    seconds=OPEN_FACTOR * plan.seconds,
                    steps=mix.steps,
                    seed=number,
                )
            else:
                # For as long as each client is answered once and the crowd often, or one alone a few times.
                capacity = comparison.capacity[mix.name]
                ramp = max(plan.seconds / 2, load.clients / capacity)
                crowd = CROWD_PICTURES / capacity if load.clients > 1 else 0.0
                served = max(ramp, crowd, LONE_CALLS * comparison.lone[mix.name][-1])
                run = await closed_loop(
                    contender.call,
                    clients=load.clients,
                    seconds=max(plan.seconds, served),
                    steps=mix.steps,
                    ramp=ramp,
                    seed=number,
                )
        comparison.add(mix, load, contender.name, number, run)
        progress(
            f"round {number + 1}, {mix.name}, {load.name}, {contender.name}: {run.rate:.2f} pictures/s, "
            f"p50 {run.percentile(50):.2f} s, p95 {run.percentile(95):.2f} s, {run.success:.0%}"
        )


def _head(plan: Plan, minutes: float, quick: bool) -> str:
    command = "make compare" + (" (quick, to see that it works)" if quick else "")
    lit = next(PACKAGES.glob("litserve-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    versions = f"BentoML {version('bentoml')}, LitServe {lit}"
    lengths = (
        f"{plan.seconds:.0f} s or longer, arrivals at random for {OPEN_FACTOR * plan.seconds:.0f} s"
    )
    return f"""Embedded model, guidance scale {GUIDANCE_SCALE:g}, 128 x 128. {machine()}.
{date.today():%Y-%m-%d}, `{command}`, {minutes:.0f} minutes. {versions}, batches of at most {MAX_BATCH} pictures
for both. The clients share the cores with the server that is measured; the others are stopped meanwhile. Each load
is measured for {lengths}, in turns and again in each round, with the same
arrivals for all. Capacity is this service's when saturated. Figures are of all rounds together, percentiles of all
their answers; the lowest and the highest round are in brackets. [load.md](load.md#side-by-side) tells what the others
are and how they are set up."""


if __name__ == "__main__":
    main()
