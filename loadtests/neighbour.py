"""A busy neighbour: what the server loses when another process spins on one of its cores."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from loadtests.drivers import closed_loop
from loadtests.pages import progress, spread, table
from loadtests.sections import Bench, Figures, Section, Yardstick, ratios, timed

# More than fit in a batch; no more than that, since all must be answered once before anything is counted, and a server
# beside a neighbour may be slow.
CLIENTS = 16
# Lone pictures of a turn beside the neighbour, where each may take half a minute.
BUSY_CALLS = 2


@contextmanager
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that spins on one core, on whichever the system lets it."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield process
        finally:
            process.kill()


async def measure(bench: Bench) -> Figures:
    """A lone picture and pictures per second over HTTP, without and with a neighbour, in turns."""
    figures: Figures = {
        name: {"without": [], "with": []} for name in ("lone, s", "saturated, pictures/s")
    }
    for turn in range(bench.plan.turns):
        await _measure(bench, figures, "without", bench.plan.lone_calls)
        with busy():
            await _measure(bench, figures, "with", BUSY_CALLS)
        told = (f"{name} {_ratios(series)[-1]:.2f} times" for name, series in figures.items())
        progress(f"neighbour, turn {turn + 1}: {', '.join(told)}")
    return figures


async def _measure(bench: Bench, figures: Figures, side: str, calls: int) -> None:
    call = bench.calls["HTTP"]
    lone = statistics.median([await timed(call) for _ in range(calls)])
    full = await closed_loop(call, clients=CLIENTS, seconds=bench.plan.seconds / 2)
    figures["lone, s"][side].append(lone)
    figures["saturated, pictures/s"][side].append(full.rate)


def text(figures: Figures) -> str:
    rows = (
        (name, spread(series["without"]), spread(series["with"]), spread(_ratios(series)))
        for name, series in figures.items()
    )
    return f"""The neighbour is one process that spins on one core. Over HTTP; {CLIENTS} clients saturate the server.

{table(("", "without", "with", "ratio"), rows)}"""


def yardsticks(figures: Figures) -> list[Yardstick]:
    aims = {"lone, s": "≤ 2", "saturated, pictures/s": "≥ 0.4"}
    return [
        (
            f"{name.partition(',')[0]} with one busy neighbour ÷ without",
            spread(_ratios(figures[name])),
            aim,
        )
        for name, aim in aims.items()
    ]


def _ratios(series: dict[str, list[float]]) -> list[float]:
    return ratios(series["with"], series["without"])


NEIGHBOUR = Section("neighbour", "Beside a busy neighbour", measure, text, yardsticks)
