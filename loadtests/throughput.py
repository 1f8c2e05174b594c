"""The server beside the bare pipeline: one picture, as many as it can draw, and crowds that come at once."""

from __future__ import annotations

import statistics

from loadtests.drivers import burst, closed_loop
from loadtests.pages import progress, spread, table
from loadtests.sections import (
    SATURATING_CLIENTS,
    Bench,
    Figures,
    Section,
    Yardstick,
    drawn_by,
    ratios,
    timed,
)

BATCHES = (1, 2, 4, 8, 16)
CONCURRENCY = (1, 10, 50)
BARE, ENGINE = "bare pipeline", "engine in process"


async def measure_lone(bench: Bench) -> Figures:
    """Seconds of one picture at a time, in turns: in process without and with the engine, over HTTP and over gRPC."""
    lone: dict[str, list[float]] = {}
    for turn in range(bench.plan.turns):
        times: dict[str, list[float]] = {}
        for _ in range(bench.plan.lone_calls):
            times.setdefault(BARE, []).append(await drawn_by(bench.bare))
            times.setdefault(ENGINE, []).append(await drawn_by(bench.engine))
            for name, call in bench.calls.items():
                times.setdefault(name, []).append(await timed(call))
        for name, values in times.items():
            lone.setdefault(name, []).append(statistics.median(values))
        progress(f"lone, turn {turn + 1}: {_last(lone)}")
    return lone


def lone_text(lone: Figures) -> str:
    return table(("", "seconds"), ((name, spread(values, 3)) for name, values in lone.items()))


def lone_yardsticks(lone: Figures) -> list[Yardstick]:
    return [
        (f"lone over {name} ÷ {base}", spread(ratios(lone[name], lone[base])), aim)
        for name in lone
        if name not in (BARE, ENGINE)
        for base, aim in ((BARE, "≤ 0.7"), (ENGINE, "≤ 1.03"))
    ]


async def measure_throughput(bench: Bench) -> Figures:
    """Pictures per second, in turns: the bare pipeline at each batch size, then the saturated server."""
    figures: Figures = {"bare": {}, "served": {}}
    for turn in range(bench.plan.turns):
        for batch in BATCHES:
            seconds = await drawn_by(bench.bare, batch)
            figures["bare"].setdefault(str(batch), []).append(batch / seconds)
        for name, call in bench.calls.items():
            run = await closed_loop(call, clients=SATURATING_CLIENTS, seconds=bench.plan.seconds)
            figures["served"].setdefault(name, []).append(run.rate)
        progress(f"throughput, turn {turn + 1}: {_last(figures['served'])}")
    return figures


def throughput_text(figures: Figures) -> str:
    rates = {
        **{f"bare pipeline, batch {batch}": values for batch, values in figures["bare"].items()},
        **{
            f"server over {name}, {SATURATING_CLIENTS} clients": values
            for name, values in figures["served"].items()
        },
    }
    return table(
        ("", "pictures per second"), ((name, spread(values)) for name, values in rates.items())
    )


def throughput_yardsticks(figures: Figures) -> list[Yardstick]:
    bare = figures["bare"]
    best = max(bare, key=lambda batch: statistics.median(bare[batch]))
    return [
        (
            f"saturated over {name} ÷ bare pipeline's best (batch {best})",
            spread(ratios(rates, bare[best])),
            "≥ 1.1",
        )
        for name, rates in figures["served"].items()
    ]


async def measure_bursts(bench: Bench) -> Figures:
    """So many requests at the same moment, over HTTP."""
    rows = []
    for clients in CONCURRENCY:
        run = await burst(bench.calls["HTTP"], clients=clients)
        percentiles = {f"p{percent}": run.percentile(percent) for percent in (50, 95, 99)}
        rows.append({"clients": clients, "success": run.success, **percentiles, "rate": run.rate})
        progress(f"{clients} at once: {run.percentile(50):.2f} s in the middle")
    return {"rows": rows}


def bursts_text(figures: Figures) -> str:
    head = ("requests", "success", "p50, s", "p95, s", "p99, s", "pictures/s")
    lines = (
        (
            row["clients"],
            f"{row['success']:.0%}",
            *(f"{row[name]:.2f}" for name in ("p50", "p95", "p99", "rate")),
        )
        for row in figures["rows"]
    )
    return table(head, lines)


def _last(series: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1]:.3f}" for name, values in series.items())


LONE = Section("lone", "A lone picture", measure_lone, lone_text, lone_yardsticks)
THROUGHPUT = Section(
    "throughput", "Throughput", measure_throughput, throughput_text, throughput_yardsticks
)
BURSTS = Section("bursts", "At the same moment, over HTTP", measure_bursts, bursts_text)
