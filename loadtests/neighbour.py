"""A busy neighbour: what the server loses when another process spins on one of its cores."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from loadtests.drivers import Run, burst, together
from loadtests.pages import progress, spread, table
from loadtests.sections import Bench, Figures, Section, Yardstick, ratios, timed

# At once, again and again: more than fit in a batch, and few enough for a server that a neighbour slows down.
CROWD = 16
# Beside a neighbour one picture may take half a minute: none more is begun after so many seconds.
LONE_SECONDS, CROWD_SECONDS = 8.0, 8.0


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
        await _measure(bench, figures, "without")
        with busy():
            await _measure(bench, figures, "with")
        told = (f"{name} {_ratios(series)[-1]:.2f} times" for name, series in figures.items())
        progress(f"neighbour, turn {turn + 1}: {', '.join(told)}")
    return figures


async def _measure(bench: Bench, figures: Figures, side: str) -> None:
    call = bench.calls["HTTP"]
    lone: list[float] = []
    while not lone or (len(lone) < bench.plan.lone_calls and sum(lone) < LONE_SECONDS):
        lone.append(await timed(call))
    figures["lone, s"][side].append(statistics.median(lone))
    crowds: list[Run] = []
    while not crowds or sum(run.seconds for run in crowds) < CROWD_SECONDS:
        crowds.append(await burst(call, clients=CROWD))
        if crowds[-1].success < 1:
            raise RuntimeError(f"only {crowds[-1].success:.0%} were answered with a picture")
    figures["saturated, pictures/s"][side].append(together(crowds).rate)


def text(figures: Figures) -> str:
    rows = (
        (name, spread(series["without"]), spread(series["with"]), spread(_ratios(series)))
        for name, series in figures.items()
    )
    return f"""The neighbour is one process that spins on one core. Over HTTP; {CROWD} requests at once, again and
again, saturate the server.

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
