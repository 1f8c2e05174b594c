"""Work in the background beside interactive requests: what it takes from them, and what it gets when nobody else asks.

Requests in the background come from more clients than a runner takes in, each with always one waiting, as a large job's
do. Whatever is compared is measured in the same turn, with the same arrivals.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loadtests.drivers import Call, Recorder, Run, closed_loop, open_loop
from loadtests.pages import progress, spread, table
from loadtests.poisson import after_warm_up
from loadtests.sections import SATURATING_CLIENTS, Bench, Figures, Section, Yardstick, ratios

# Interactive arrivals, as a share of the saturation throughput.
OFFERED = 0.4
# Seconds that a request in the background may take.
PATIENCE = 600
# Of interactive requests, those that the figure is about.
PERCENT = 95


@asynccontextmanager
async def endless(call: Call, *, clients: int, steps: int = 20) -> AsyncIterator[Recorder]:
    """Clients that each always have a call under way, once the first of them are answered."""
    recorder = Recorder(call)
    answered = asyncio.Event()

    async def client() -> None:
        while True:
            await recorder.one(steps)
            answered.set()

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        await answered.wait()
        yield recorder
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def measure(bench: Bench) -> Figures:
    """In turns: saturation by either class alone, then interactive arrivals without the other and with it."""
    interactive = bench.calls["HTTP"]
    behind = bench.http_call({"X-Request-Timeout": str(PATIENCE)}, background=True)
    turns = []
    for number in range(bench.plan.turns):
        seconds = bench.plan.open_seconds
        saturation = await bench.saturation()
        alone = await closed_loop(behind, clients=SATURATING_CLIENTS, seconds=bench.plan.seconds)

        async def arriving(rate: float = OFFERED * saturation, seed: int = number) -> Run:
            run = await open_loop(
                interactive, rate=rate, seconds=bench.plan.open_seconds, seed=seed
            )
            return after_warm_up(run, bench.plan.open_seconds)

        without = await arriving()
        async with endless(behind, clients=SATURATING_CLIENTS) as recorder:
            begun, before = recorder.elapsed, len(recorder.answers)
            beside = await arriving()
            drawn = sum(answer.ok for answer in recorder.answers[before:])
            gaps = drawn / (recorder.elapsed - begun)
        turns.append(
            {
                "saturation": saturation,
                "alone": alone.rate,
                "without": without.percentile(PERCENT),
                "with": beside.percentile(PERCENT),
                "success": [without.success, beside.success],
                "requests": len(beside.answers),
                "gaps": gaps,
            }
        )
        progress(f"background, turn {number + 1} of {seconds:g} s: {turns[-1]}")
    return {"seconds": bench.plan.open_seconds, "turns": turns}


def text(figures: Figures) -> str:
    head = (
        "turn",
        "saturated, pictures/s",
        "background alone",
        f"p{PERCENT} without, s",
        f"p{PERCENT} with it, s",
        "background beside",
    )
    names = ("saturation", "alone", "without", "with", "gaps")
    turns = figures["turns"]
    rows = (
        (number, *(f"{turn[name]:.2f}" for name in names)) for number, turn in enumerate(turns, 1)
    )
    requests = statistics.fmean(turn["requests"] for turn in turns)
    return f"""Interactive requests arrive over HTTP at {OFFERED:.0%} of the saturation throughput for
{figures["seconds"]:g} s, {requests:.0f} of which count, first without and then beside {SATURATING_CLIENTS} clients who
always have one more request in the background.

{table(head, rows)}"""


def yardsticks(figures: Figures) -> list[Yardstick]:
    def of(name: str) -> list[float]:
        return [turn[name] for turn in figures["turns"]]

    return [
        (
            f"interactive p{PERCENT} with work in the background ÷ without",
            spread(ratios(of("with"), of("without"))),
            "≤ 1.25",
        ),
        (
            "background alone ÷ saturation",
            spread(ratios(of("alone"), of("saturation"))),
            "≥ 0.95",
        ),
    ]


BACKGROUND = Section("background", "Work in the background", measure, text, yardsticks)
