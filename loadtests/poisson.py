"""The highest rate of Poisson arrivals at which 99 of 100 are answered within so many times a lone picture.

MLPerf's question for servers, with what the same server draws when saturated as the measure. Both are measured anew in
each turn, so that a machine that others share is compared with itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from loadtests.drivers import Call, Run, open_loop
from loadtests.pages import progress, spread, table
from loadtests.sections import Bench, Figures, Section, Yardstick

# Offered rates, as shares of the saturation throughput. Above the last a queue only grows, and how long depends on how
# long it is watched.
SHARES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)
# Bounds on p99, as multiples of a lone picture, and the shares of saturation that should be borne within them.
BOUNDS = {20: 0.99, 10: 0.95}
# Of the requests, those that must be answered within the bound.
ANSWERED = 0.99
# The part of a run in which the queue is not yet as long as it will be; its requests do not count.
WARM_UP = 0.2


async def highest(
    shares: Sequence[float], holds: Callable[[float], Awaitable[bool]]
) -> float | None:
    """The highest of ascending shares at which something holds that holds below wherever it holds; None if at none.

    Asks for the last one first, since that is what is hoped for, and then halves what is left.
    """
    if await holds(shares[-1]):
        return shares[-1]
    low, high = -1, len(shares) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if await holds(shares[middle]):
            low = middle
        else:
            high = middle
    return shares[low] if low >= 0 else None


def after_warm_up(run: Run, seconds: float) -> Run:
    """What was sent after the warm-up of a run in which requests were sent for so many seconds."""
    begin = WARM_UP * seconds
    return Run([answer for answer in run.answers if answer.sent >= begin], run.seconds - begin)


def within(run: Run, seconds: float) -> float:
    """Share of the requests that were answered with a picture in time."""
    in_time = sum(answer.ok and answer.latency <= seconds for answer in run.answers)
    return in_time / max(1, len(run.answers))


async def measure_turn(
    call: Call, turn: Figures, *, seconds: float, seed: int, steps: int = 20
) -> None:
    """Fills in the runs and the highest shares of a turn, of which `lone` and `saturation` are there.

    What is there when it fails or is cancelled stays.
    """
    turn.update(runs={}, highest={})
    runs: dict[float, Run] = {}

    async def holds(share: float, bound: int) -> bool:
        if share not in runs:
            whole = await open_loop(
                call, rate=share * turn["saturation"], seconds=seconds, steps=(steps,), seed=seed
            )
            runs[share] = run = after_warm_up(whole, seconds)
            turn["runs"][f"{share:g}"] = _told(run)
            progress(f"offered {share:.0%} of saturation: p99 {run.percentile(99):.2f} s")
        return within(runs[share], bound * turn["lone"]) >= ANSWERED

    for bound in BOUNDS:
        turn["highest"][str(bound)] = await highest(SHARES, lambda share, b=bound: holds(share, b))


def _told(run: Run) -> Figures:
    percentiles = {f"p{percent}": run.percentile(percent) for percent in (50, 95, 99)}
    return {"requests": len(run.answers), "success": run.success, **percentiles}


async def measure(bench: Bench) -> Figures:
    """In turns, each with arrivals of its own."""
    seconds = bench.plan.open_seconds
    turns = []
    for number in range(bench.plan.turns):
        turn: Figures = {"lone": await bench.lone(), "saturation": await bench.saturation()}
        await measure_turn(bench.calls["HTTP"], turn, seconds=seconds, seed=number)
        turns.append(turn)
    return {"seconds": seconds, "turns": turns}


def text(figures: Figures) -> str:
    head = ("turn", "lone, s", "saturated, pictures/s", *(f"p99 ≤ {x} × lone" for x in BOUNDS))
    turns = figures["turns"]
    found = (
        (
            number,
            f"{turn['lone']:.2f}",
            f"{turn['saturation']:.2f}",
            *(_share(turn["highest"].get(str(bound))) for bound in BOUNDS),
        )
        for number, turn in enumerate(turns, 1)
    )
    runs = (
        (number, f"{float(share):.0%}", run["requests"], f"{run['success']:.0%}", *_seconds(run))
        for number, turn in enumerate(turns, 1)
        for share, run in sorted(turn["runs"].items(), key=lambda item: float(item[0]))
    )
    columns = ("turn", "offered", "requests", "success", "p50, s", "p95, s", "p99, s")
    return f"""The highest rate, as a share of the saturation throughput of the same turn, at which {ANSWERED:.0%}
of the requests are answered within the bound. Each rate is offered for {figures["seconds"]:g} s, of which the first
{WARM_UP:.0%} do not count; no higher one than {SHARES[-1]:g} is tried.

{table(head, found)}

{table(columns, runs)}"""


def yardsticks(figures: Figures) -> list[Yardstick]:
    return [
        (
            f"highest Poisson rate with p99 ≤ {bound} × lone ÷ saturation",
            shown([turn["highest"].get(str(bound)) for turn in figures["turns"]]),
            f"≥ {aim:g}",
        )
        for bound, aim in BOUNDS.items()
    ]


def shown(shares: Sequence[float | None]) -> str:
    """Shares of several turns; a turn in which none held counts as 0."""
    return spread([share or 0.0 for share in shares])


def _share(share: float | None) -> str:
    return f"below {SHARES[0]:.2f}" if share is None else f"{share:.2f}"


def _seconds(run: Figures) -> list[str]:
    return [f"{run[name]:.2f}" for name in ("p50", "p95", "p99")]


POISSON = Section("poisson", "Poisson arrivals over HTTP", measure, text, yardsticks)
