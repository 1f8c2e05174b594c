"""Fast pictures: how many more are drawn in the same time than exact ones, and what they lose of their prompts."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryDirectory

from loadtests.calls import http_call, http_session
from loadtests.drivers import closed_loop
from loadtests.inprocess import GUIDANCE_SCALE, PROMPT
from loadtests.pages import progress, spread, table
from loadtests.sections import (
    SATURATING_CLIENTS,
    Bench,
    Figures,
    Section,
    Yardstick,
    ratios,
    timed,
)
from tests.e2e.harness import ROOT, Server, serving

# The default guided part of the steps, and every second pass of the network a whole one.
INTERVAL, WHOLE_EVERY = "0-0.3", 2
# The judge is asked one of so many of its questions.
ONE_QUESTION_OF = 3


async def measure(bench: Bench) -> Figures:
    """Lone pictures and pictures per second over HTTP, exact and fast by turns; then the judge's points."""
    figures: Figures = {
        name: {"exact": [], "fast": []} for name in ("lone, s", "saturated, pictures/s")
    }
    settings = {"T2I_GUIDANCE_INTERVAL": INTERVAL, "T2I_DEEP_CACHE": str(WHOLE_EVERY)}
    with TemporaryDirectory() as folder:
        server = Server(Path(folder), **settings)
        with serving(server):
            for turn in range(bench.plan.turns):
                for quality in ("exact", "fast"):
                    await _measure(bench, server, figures, quality)
                told = (
                    f"{name} {_ratios(series)[-1]:.2f} times" for name, series in figures.items()
                )
                progress(f"approximations, turn {turn + 1}: {', '.join(told)}")
    figures["adherence"] = await _adherence()
    return figures


async def _measure(bench: Bench, server: Server, figures: Figures, quality: str) -> None:
    async with http_session(timeout=3600) as session:
        fields = {"text": PROMPT, "guidance_scale": GUIDANCE_SCALE, "quality": quality}
        call = http_call(session, server.url, **fields)
        lone = [await timed(call) for _ in range(bench.plan.lone_calls)]
        figures["lone, s"][quality].append(statistics.median(lone))
        run = await closed_loop(call, clients=SATURATING_CLIENTS, seconds=bench.plan.seconds)
        figures["saturated, pictures/s"][quality].append(run.rate)


async def _adherence() -> Figures:
    """What the judge of the embedded model says of as many pictures of either kind."""
    command = (sys.executable, "-m", "training.approximations", f"{INTERVAL}:{WHOLE_EVERY}")
    process = await asyncio.create_subprocess_exec(
        *command, "--every", str(ONE_QUESTION_OF), cwd=ROOT, env=os.environ, stdout=PIPE
    )
    printed, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    head, _, exact, fast = printed.decode().splitlines()
    lost = float(_cells(fast)[2])
    return {"prompts": int(_cells(head)[1].split()[-1]), "met": int(_cells(exact)[1]), "lost": lost}


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def text(figures: Figures) -> str:
    rows = (
        (name, spread(series["exact"]), spread(series["fast"]), spread(_ratios(series)))
        for name, series in figures.items()
        if name != "adherence"
    )
    adherence = figures["adherence"]
    return f"""`quality: fast` with `T2I_GUIDANCE_INTERVAL={INTERVAL}` and `T2I_DEEP_CACHE={WHOLE_EVERY}`, over HTTP;
{SATURATING_CLIENTS} clients saturate the server. Both are [off unless asked for](models.md#fast-pictures). The judge of
the embedded model found {adherence["met"]} of {adherence["prompts"]} prompts in the exact pictures; fast ones lost
{adherence["lost"]:.1f} of a hundred.

{table(("", "exact", "fast", "fast ÷ exact"), rows)}"""


def yardsticks(figures: Figures) -> list[Yardstick]:
    ratio = spread(_ratios(figures["saturated, pictures/s"]))
    lost = f"{figures['adherence']['lost']:.1f}"
    return [
        ("approximations on: saturated pictures/s ÷ exact", ratio, "≥ 1.5"),
        ("approximations on: points of a hundred prompts lost", lost, "≤ 2"),
    ]


def _ratios(series: dict[str, list[float]]) -> list[float]:
    return ratios(series["fast"], series["exact"])


APPROXIMATIONS = Section("approximations", "Fast pictures", measure, text, yardsticks)
