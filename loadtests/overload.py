"""More than can be served: goodput, refusals, memory, and how soon all is well again.

Arrivals come in an open loop at a multiple of what the server was measured to draw, by clients that wait no longer than
`PATIENCE`. The capacity is measured right before and right after the storm, in closed loops of the same run, and once
more before the curve: a machine that others share is not as fast at all times.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import pyplot

from loadtests.drivers import Answer, Run, open_loop
from loadtests.pages import progress, table
from loadtests.sections import SATURATING_CLIENTS, Bench, Figures, Section, timed
from tests.e2e.harness import Server

STORM = 3.0
PATIENCE = 10.0
# Shares of the capacity that the curve is measured at, before the storm itself.
OFFERED = (0.5, 1.0, 1.5, 2.0)
# Lone pictures after the storm: enough of them to see the latency come down.
AFTER = 5
# Seconds between two readings of the memory.
READING_PAUSE = 1.0
PLOT = "overload.png"
HEAD = (
    "offered",
    "pictures/s",
    "of capacity",
    "p50, s",
    "p99, s",
    "refused within, ms: median, p99",
)


@dataclass(frozen=True, slots=True)
class Storm:
    """What was measured.

    Attributes:
        capacity: pictures per second of a saturated server, before and after the storm.
        lone: seconds of a lone picture before.
        at_first: the capacity before the curve.
        curve: by share of that, shorter runs.
        run: the storm.
        memory: bytes of all the server's processes through the storm.
        after: seconds of lone pictures, one after the other, from the end of the storm on.
    """

    capacity: tuple[float, float]
    lone: float
    at_first: float
    curve: dict[float, Run]
    run: Run
    memory: list[float]
    after: list[float]

    @property
    def mean_capacity(self) -> float:
        return statistics.fmean(self.capacity)


async def measure(bench: Bench) -> Figures:
    """The curve and the storm as figures, and as a picture beside the page."""
    storm = await measure_storm(bench, bench.plan.storm_seconds)
    draw(storm, bench.page.with_name(PLOT))
    return told(storm)


async def measure_storm(bench: Bench, seconds: float) -> Storm:
    """Runs the curve and the storm, which lasts so many seconds and at least the clients' patience.

    The clients of the closed loops, unlike the others, do not give up: refused ones would ask again at once for ever,
    and their number would be measured instead of the capacity.
    """
    impatient = bench.http_call({"X-Request-Timeout": f"{PATIENCE:g}"})
    lone = await bench.lone()
    at_first = await bench.saturation()
    curve = {
        # What comes before the first arrivals' patience is over does not count.
        share: await open_loop(impatient, rate=share * at_first, seconds=PATIENCE + seconds / 4)
        for share in OFFERED
    }
    progress(f"beyond capacity: the storm of {seconds:g} s begins")
    before = await bench.saturation()
    memory: list[float] = []
    async with _reading(bench.server, memory):
        run = await open_loop(impatient, rate=STORM * before, seconds=seconds)
    after = [await timed(bench.calls["HTTP"]) for _ in range(AFTER)]
    return Storm((before, await bench.saturation()), lone, at_first, curve, run, memory, after)


@contextlib.asynccontextmanager
async def _reading(server: Server, readings: list[float]) -> AsyncIterator[None]:
    async def read() -> None:
        while True:
            readings.append(await asyncio.to_thread(server.memory))
            await asyncio.sleep(READING_PAUSE)

    reader = asyncio.create_task(read())
    try:
        yield
    finally:
        reader.cancel()


def goodput(run: Run) -> float:
    """Pictures per second once the first arrivals must have been answered."""
    return run.goodput(PATIENCE)


def refusals(run: Run) -> list[float]:
    """Seconds until each refusal, the quickest first."""
    return sorted(answer.latency for answer in run.answers if answer.refused)


def told(storm: Storm) -> Figures:
    """What the page has of it."""
    capacity = storm.mean_capacity
    memory = storm.memory[len(storm.memory) // 4 :]
    runs = [(share, run, storm.at_first) for share, run in storm.curve.items()]
    return {
        "at_first": storm.at_first,
        "capacity": storm.capacity,
        "rows": [_row(*each) for each in [*runs, (STORM, storm.run, capacity)]],
        "seconds": storm.run.answers[-1].sent,
        "requests": len(storm.run.answers),
        "pictures": sum(answer.ok for answer in storm.run.answers),
        "failures": sum(not answer.ok and not answer.refused for answer in storm.run.answers),
        "memory": [min(memory), max(memory)],
        "lone": storm.lone,
        "after": storm.after,
    }


def _row(share: float, run: Run, capacity: float) -> Figures:
    drawn = goodput(run)
    return {
        "offered": share,
        "goodput": drawn,
        "of_capacity": drawn / capacity,
        "p50": run.percentile(50),
        "p99": run.percentile(99),
        "refused": _milliseconds(refusals(run)),
    }


def text(figures: Figures) -> str:
    """The figures as Markdown."""
    before, after = figures["capacity"]
    rows = (
        (
            f"{row['offered']:.0%}",
            f"{row['goodput']:.2f}",
            f"{row['of_capacity']:.0%}",
            f"{row['p50']:.2f}",
            f"{row['p99']:.2f}",
            row["refused"],
        )
        for row in figures["rows"]
    )
    low, high = (each / 2**20 for each in figures["memory"])
    lone = ", ".join(f"{value:.2f}" for value in figures["after"])
    return f"""By clients that wait no longer than {PATIENCE:g} s. The capacity, in closed loops of {SATURATING_CLIENTS}
clients, was {figures["at_first"]:.2f} pictures/s before the curve, {before:.2f} right before the storm and
{after:.2f} right after it; the storm is compared with the mean of the last two.

{table(HEAD, rows)}

![Goodput, refusals and latency beyond capacity]({PLOT})

The storm of {STORM:g} times the capacity lasted {figures["seconds"]:.0f} s: {figures["requests"]} requests,
{figures["pictures"]} pictures, {figures["failures"]} failures other than a 503.
Memory of all processes moved between {low:.0f} and {high:.0f} MiB after its first
quarter. A lone picture took {figures["lone"]:.2f} s before, and {lone} s
right after."""


def _milliseconds(seconds: Sequence[float]) -> str:
    if not seconds:
        return "none"
    slow = seconds[int(0.99 * len(seconds))]
    return f"{1000 * statistics.median(seconds):.0f}, {1000 * slow:.0f}"


def draw(storm: Storm, path: Path) -> None:
    """Two pictures side by side: goodput against the offered rate, and the storm second by second."""
    figure, (curve, course) = pyplot.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    rates = {share: goodput(run) / storm.at_first for share, run in storm.curve.items()}
    rates[STORM] = goodput(storm.run) / storm.mean_capacity
    curve.plot([0, 1, STORM], [0, 1, 1], color="0.7", linestyle="--", label="ideal")
    curve.plot([*rates], [*rates.values()], marker="o", label="served")
    curve.set(xlabel="offered ÷ capacity", ylabel="goodput ÷ capacity", ylim=(0, 1.15))
    curve.legend(loc="lower right", frameon=False)
    seconds = range(int(storm.run.answers[-1].sent))
    course.plot(
        seconds, [_answered(storm.run.answers, at, ok=True) for at in seconds], label="pictures"
    )
    course.plot(
        seconds, [_answered(storm.run.answers, at, ok=False) for at in seconds], label="refusals"
    )
    course.set(
        xlabel="seconds into the storm", ylabel="answers per second, mean of 5 s", ylim=(0, None)
    )
    figure.legend(
        *course.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _answered(answers: Sequence[Answer], at: int, *, ok: bool) -> float:
    """Answers per second around second `at`."""
    return sum(answer.ok is ok and abs(answer.answered - at) <= 2.5 for answer in answers) / 5


OVERLOAD = Section("overload", "Beyond capacity, Poisson arrivals over HTTP", measure, text)
