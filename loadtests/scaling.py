"""`make scaling`: the tables of docs/scaling.md: what fleets bear, and the simulation beside a real server here.

The devices are models: what others have published, or docs/benchmarks.md has. What a runner's log says under "steps
measured" is such a curve too: put in here, it gives a plan for that very hardware.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from loadtests.calls import http_call, http_session
from loadtests.drivers import Run, arrivals, closed_loop, open_loop
from loadtests.inprocess import GUIDANCE_SCALE, PROMPT
from loadtests.pages import machine, progress, table
from loadtests.simulation import (
    ROWS_OF_GUIDED,
    Profile,
    Result,
    percentile,
    simulate,
)
from tests.e2e.harness import Server, serving
from text2image.engine.costs import Curve

REPORT = Path(__file__).parents[1] / "docs" / "scaling.md"
# Steps of a picture, and the mix of them that stands for clients who do not all want the same.
STEPS = 20
MIXED = (10, 20, 40)
PER_MINUTE = (1, 10, 1_000, 100_000)
# Fleets that are simulated; a larger one is planned as several of the largest, each with gateways of its own.
SIZES = (1, 4, 16)
FLEET = max(SIZES)
HOURS = 730
# Decoding a 512x512 picture, as a multiple of what a full batch's step takes for each of its rows.
DECODE_ROW_STEPS = 4.6
OFFERED = (0.5, 0.8)
SATURATING_CLIENTS = 24
LONE_CALLS = 7
PARTS = ("plan", "check")


@dataclass(frozen=True, slots=True)
class Device:
    """What a runner has: its speed, and dollars an hour."""

    profile: Profile
    price: float


def published(*rates: float) -> Profile:
    """A card by its U-Net steps per second with 1, 4 and 16 guided pictures of 512x512."""
    steps = {
        ROWS_OF_GUIDED * batch: 1 / rate for batch, rate in zip((1, 4, 16), rates, strict=True)
    }
    full = max(steps)
    return Profile(steps, decode=DECODE_ROW_STEPS * steps[full] / full)


def measured(*rates: float) -> Profile:
    """A device by its pictures of 20 steps per second in batches of 1, 2, 4, 8 and 16, decoding included."""
    batches = (1, 2, 4, 8, 16)
    points = zip(batches, rates, strict=True)
    return Profile(
        {ROWS_OF_GUIDED * batch: batch / rate / STEPS for batch, rate in points}, decode=0.0
    )


# Cards: Stable Diffusion 1.5 in fp16, from the documentation of diffusers 0.17, "Accelerated PyTorch 2.0 support", SD
# txt2img, torch nightly of May 2023, not compiled. Cores: the bare pipeline in docs/benchmarks.md.
DEVICES = {
    "2 CPU cores, embedded model": Device(measured(1.00, 1.60, 1.97, 2.33, 2.43), price=0.08),
    "T4": Device(published(6.95, 1.79, 1 / 2.30), price=0.35),
    "RTX 4090": Device(published(41.89, 12.84, 3.20), price=0.50),
    "A100": Device(published(23.13, 13.12, 3.60), price=2.00),
}


def holds(profile: Profile, rate: float, runners: int, steps: Sequence[int] = MIXED) -> bool:
    """Whether so many runners keep p99 within its bound at a Poisson rate per second."""
    pictures = 1500 + 100 * runners
    due = list(arrivals(rate=rate, seconds=pictures / rate, steps=steps))
    return simulate(profile, due, runners).holds()


def highest_rate(profile: Profile, runners: int) -> float:
    """The highest rate per second, within 2 % of saturation, that so many runners bear."""
    saturation = runners * profile.saturation(statistics.fmean(MIXED))
    low, high = 0.0, 1.0
    while high - low > 0.02:
        share = (low + high) / 2
        if holds(profile, share * saturation, runners):
            low = share
        else:
            high = share
    return low * saturation


def runners_for(profile: Profile, rate: float, largest: float) -> int:
    """The fewest runners that bear a rate per second, given what a fleet of `FLEET` bears."""
    if rate > largest:
        return math.ceil(FLEET * rate / largest)
    runners = math.ceil(rate / profile.saturation(statistics.fmean(MIXED)))
    while not holds(profile, rate, runners):
        runners += 1
    return runners


def plan() -> str:
    """What fleets bear, and the runners for each rate, as two tables."""
    fleets, needs = [], []
    for name, device in DEVICES.items():
        profile = device.profile
        rates = {size: highest_rate(profile, size) for size in SIZES}
        saturation = profile.saturation(statistics.fmean(MIXED))
        shares = (rates[size] / (size * saturation) for size in SIZES)
        lone = f"{profile.alone(STEPS):.2f}"
        fleets.append((name, lone, f"{60 * saturation:.0f}", *(f"{each:.0%}" for each in shares)))
        for pictures in PER_MINUTE:
            number = runners_for(profile, pictures / 60, rates[FLEET])
            needs.append((name, *_need(pictures, number, device.price, saturation)))
        progress(f"{name}: simulated")
    borne = (f"lone picture of {STEPS} steps, s", "saturated, pictures a minute", *SIZES)
    needed = (
        "pictures a minute",
        "runners",
        "load",
        "dollars a month",
        "dollars per 1,000 pictures",
    )
    return f"""{table(("device", *borne), fleets)}

{table(("device", *needed), needs)}
"""


def _need(pictures: int, runners: int, price: float, saturation: float) -> tuple[str, ...]:
    """Pictures a minute, the runners for them, their load, and what they cost."""
    load = pictures / 60 / (runners * saturation)
    cost = runners * price / 60 / pictures * 1000
    return (
        f"{pictures:,}",
        f"{runners:,}",
        f"{load:.0%}",
        f"{runners * price * HOURS:,.0f}",
        f"{cost:.2f}",
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One offered share of the saturation: what the server did, and what its simulation says."""

    share: float
    measured: Run
    simulated: Result


@dataclass(frozen=True, slots=True)
class Check:
    """What was measured of the server, and the profile made of it."""

    lone: float
    saturation: float
    profile: Profile
    comparisons: Sequence[Comparison]
    load: float


def check(seconds: float) -> Check:
    """Measures a server on this machine, each part for so many seconds, and simulates the same arrivals."""
    load = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Server(Path(folder), T2I_CACHE_BYTES="0")) as server,
    ):
        return asyncio.run(_measured(server, seconds, load))


async def _measured(server: Server, seconds: float, load: float) -> Check:
    async with http_session(timeout=600) as client:
        call = http_call(client, server.url, text=PROMPT, guidance_scale=GUIDANCE_SCALE)
        lone, overhead = await asyncio.to_thread(_lone, server)
        full = await closed_loop(call, clients=SATURATING_CLIENTS, seconds=seconds, steps=MIXED)
        _require_pictures(full)
        warm_up = warm_up_of(server.log)
        profile = calibrated(warm_up, lone, full.rate, overhead)
        comparisons = []
        for share in OFFERED:
            rate = share * full.rate
            run = await open_loop(call, rate=rate, seconds=seconds, steps=MIXED)
            _require_pictures(run)
            same = list(arrivals(rate=rate, seconds=seconds, steps=MIXED))
            comparisons.append(Comparison(share, run, simulate(profile, same, warm_up=0.0)))
            progress(f"offered {share:.0%} of saturation: measured")
    return Check(lone, full.rate, profile, comparisons, load)


def _require_pictures(run: Run) -> None:
    """Ends the measurement if not every call was answered with a picture: nothing could be compared with it.

    Raises:
        SystemExit: with the share that was.
    """
    if run.success < 1 or not run.answers:
        raise SystemExit(f"only {run.success:.0%} of the calls were answered with a picture")


def _lone(server: Server) -> tuple[float, float]:
    """Median seconds of a lone picture over gRPC, and how much of them passes outside the engine."""
    seconds, outside = [], []
    with server.client() as client:
        for seed in range(LONE_CALLS):
            started = time.perf_counter()
            (picture,) = client.generate(
                PROMPT, seed=seed, steps=STEPS, guidance_scale=GUIDANCE_SCALE
            )
            seconds.append(time.perf_counter() - started)
            outside.append(seconds[-1] - picture.timings.total)
    return statistics.median(seconds), statistics.median(outside)


def warm_up_of(log: str) -> Profile:
    """The curve that a runner tells in its log when it is ready."""
    found = re.search(r"steps measured \(rows: ms\): (.+); decoding ([\d.]+) ms", log)
    assert found, "the log tells of no warm-up"
    points = (point.split(": ") for point in found[1].split(", "))
    steps = {int(at): float(milliseconds) / 1000 for at, milliseconds in points}
    return Profile(steps, decode=float(found[2]) / 1000)


def calibrated(warm_up: Profile, lone: float, saturation: float, overhead: float) -> Profile:
    """A warm-up's curve, slowed down so that a lone picture and a saturated runner take what was measured.

    A warm-up measures the forward pass on a calm machine. A step of the server has the samplers' work besides, and may
    share its cores with the gateway and the clients.
    """
    curve = Curve(warm_up.steps)
    full_rows = max(ROWS_OF_GUIDED, curve.best_rows)
    alone = (lone - overhead - warm_up.decode) / STEPS
    full = (1 / saturation - warm_up.decode) / statistics.fmean(MIXED) * full_rows / ROWS_OF_GUIDED
    first, last = alone / curve.at(ROWS_OF_GUIDED), full / curve.at(full_rows)

    def factor(at: int) -> float:
        share = (at - ROWS_OF_GUIDED) / max(1, full_rows - ROWS_OF_GUIDED)
        return first + (last - first) * min(1.0, max(0.0, share))

    steps = {at: seconds * factor(at) for at, seconds in warm_up.steps.items()}
    return replace(warm_up, steps=steps, overhead=overhead)


def checked(result: Check) -> str:
    """The comparison as a table, with the errors of the simulation."""
    lines = []
    for each in result.comparisons:
        run, simulated = each.measured, each.simulated
        pairs = [
            (run.percentile(50), percentile(simulated.latencies, 50)),
            (run.percentile(95), percentile(simulated.latencies, 95)),
            (run.rate, len(simulated.latencies) / run.seconds),
        ]
        cells = (f"{real:.2f} / {ours:.2f} ({ours / real - 1:+.0%})" for real, ours in pairs)
        lines.append((f"{each.share:.0%}", len(run.answers), *cells))
    steps = result.profile.steps.items()
    curve = ", ".join(f"{at}: {1000 * seconds:.0f}" for at, seconds in steps)
    return f"""{date.today():%Y-%m-%d}, {machine()}; the load average was {result.load:.1f} before. A lone picture took
{result.lone:.2f} s, {result.saturation:.2f} pictures/s were drawn at saturation. Calibrated steps, ms by rows: {curve}.

{table(("offered", "requests", "p50, s", "p95, s", "pictures/s"), lines)}
"""


def with_part(text: str, name: str, part: str) -> str:
    """The page with what stands between the marks of this name replaced."""
    between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
    assert between.search(text), f"the page has no marks {name!r}"
    return between.sub(lambda _: part, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=PARTS, help="both if none is named")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each measurement")
    options = parser.parse_args()
    wanted = options.parts or PARTS
    parts = {}
    if "plan" in wanted:
        parts["plan"] = plan()
    if "check" in wanted:
        parts["check"] = checked(check(options.seconds))
    page = REPORT.read_text()
    for name, part in parts.items():
        print(part)
        page = with_part(page, name, part)
    REPORT.write_text(page)


if __name__ == "__main__":
    main()
