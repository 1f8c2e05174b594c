"""The server with a model of true size beside the bare pipeline: lone pictures, saturated, Poisson arrivals, memory."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx

from loadtests import occupancy, poisson
from loadtests.calls import grpc_call, http_call, http_session
from loadtests.drivers import Call, closed_loop
from loadtests.gpu.plan import Plan
from loadtests.gpu.record import Record
from loadtests.inprocess import GUIDANCE_SCALE, PROMPT, Worker, bare_pipeline
from loadtests.sections import SEEDS
from tests.e2e.harness import Server, serving
from text2image.client import AsyncClient

# Seconds that a server which is told to end may go on drawing.
DRAIN_SECONDS = 3
USED, FREE = (f"text2image_device_memory_{kind}_bytes" for kind in ("used", "free"))
# Seconds of each part; lone and saturated pictures are measured in turns.
LONE_SECONDS, SATURATED_SECONDS, POISSON_SECONDS = 30, 90, 90
# The most that is waited for what is compiled in the background.
COMPILED_SECONDS = 90


def measure(plan: Plan, record: Record, work: Path, model: Path) -> None:
    """All there is, with the bare pipeline."""
    with (
        _started(plan, record, work, model) as server,
        Worker(functools.partial(bare_pipeline, folder=model, device=plan.device)) as bare,
    ):
        asyncio.run(_measure(plan, record, server, bare))


def measure_compiled(plan: Plan, record: Record, work: Path, model: Path) -> None:
    """A server that compiles its network while it serves: the start, a lone picture, and how many it draws."""
    compiled = {"T2I_COMPILE": "1", **plan.environment}
    with _started(plan, record, work, model, **compiled) as server:
        asyncio.run(_measure_compiled(plan, record, server))


@contextlib.contextmanager
def _started(
    plan: Plan, record: Record, work: Path, model: Path, **settings: str
) -> Iterator[Server]:
    folder = work / ("compiled" if settings else "server")
    named = {
        "T2I_MODEL": str(model),
        "T2I_DEVICE": plan.device,
        "T2I_DRAIN_TIMEOUT": str(DRAIN_SECONDS),
        "T2I_CACHE_BYTES": "0",
    }
    began = time.monotonic()
    with serving(Server(folder, **named, **settings)) as server:
        record.figures["start"] = time.monotonic() - began
        with record.part("the warm-up's figures"):
            record.figures |= warm_up_of(server.log)
        yield server


def warm_up_of(log: str) -> dict[str, object]:
    """What the log tells of the warm-up: milliseconds of a step by rows, of a prompt and of a picture, and the cap."""
    found = re.search(
        r"steps measured \(rows: ms\): (.+); encoding ([\d.]+) ms, decoding ([\d.]+) ms; "
        r"batch cap (\d+) rows",
        log,
    )
    if not found:
        raise ValueError("the log tells of no warm-up")
    steps = dict(point.split(": ") for point in found[1].split(", "))
    return {
        "steps": {rows: float(milliseconds) for rows, milliseconds in steps.items()},
        "encoding": float(found[2]),
        "decoding": float(found[3]),
        "cap": int(found[4]),
    }


def compiled_of(log: str) -> list[int]:
    """The numbers of rows that the log tells to be compiled."""
    return [int(rows) for rows in re.findall(r"compiled for (\d+) rows", log)]


async def _measure(plan: Plan, record: Record, server: Server, bare: Worker) -> None:
    async with _calls(plan, server) as calls:
        with record.part("lone"):
            async with asyncio.timeout(LONE_SECONDS):
                await _lone(plan, record, calls, bare)
        async with _memory(record, server):
            with record.part("saturated"):
                async with asyncio.timeout(SATURATED_SECONDS):
                    await _saturated(plan, record, server, calls, bare)
            with record.part("Poisson"):
                turn = {
                    "lone": statistics.median(record.figures["lone"]["HTTP"]),
                    "saturation": statistics.median(record.figures["saturated"]["HTTP"]),
                }
                record.figures["Poisson"] = {"seconds": plan.open_seconds, "turns": [turn]}
                async with asyncio.timeout(POISSON_SECONDS):
                    await poisson.measure_turn(
                        calls["HTTP"], turn, seconds=plan.open_seconds, seed=0, steps=plan.steps
                    )


async def _measure_compiled(plan: Plan, record: Record, server: Server) -> None:
    """What is drawn once the rows of a lone picture are compiled, and those of a full batch."""
    full = record.figures.get("cap", 0)
    async with _calls(plan, server) as calls:
        call = calls["HTTP"]
        with record.part("lone"):
            await _until_compiled(plan, record, server, call, rows=2, clients=1)
            record.figures["lone"] = {"HTTP": [await _median(plan, call)]}
        async with _memory(record, server):
            with record.part("saturated"):
                await _until_compiled(plan, record, server, call, rows=full, clients=plan.clients)
                rate = await _rate(plan, record, server, call)
                record.figures["saturated"] = {"HTTP": [rate]}


async def _until_compiled(
    plan: Plan, record: Record, server: Server, call: Call, *, rows: int, clients: int
) -> None:
    """Keeps the server busy until it has compiled for so many rows; for how long is noted."""
    started = time.perf_counter()
    while max(compiled_of(server.log), default=0) < rows:
        if time.perf_counter() - started > COMPILED_SECONDS:
            raise TimeoutError(f"not compiled for {rows} rows within {COMPILED_SECONDS} s")
        await closed_loop(call, clients=clients, seconds=1.0, steps=(plan.steps,))
    seconds = time.perf_counter() - started
    record.figures.setdefault("compiling", {}).setdefault(str(rows), seconds)


@contextlib.asynccontextmanager
async def _calls(plan: Plan, server: Server) -> AsyncIterator[dict[str, Call]]:
    async with http_session(timeout=600) as http, AsyncClient(server.address) as grpc:
        yield {
            "HTTP": http_call(http, server.url, text=PROMPT, guidance_scale=GUIDANCE_SCALE),
            "gRPC": grpc_call(grpc, PROMPT, guidance_scale=GUIDANCE_SCALE),
        }


async def _lone(plan: Plan, record: Record, calls: dict[str, Call], bare: Worker) -> None:
    lone = record.figures.setdefault("lone", {})
    for call in calls.values():
        await call(SEEDS.randrange(2**53), plan.steps)
    for _ in range(plan.turns):
        times = [
            await asyncio.to_thread(bare.seconds, 1, plan.steps) for _ in range(plan.lone_calls)
        ]
        lone.setdefault("bare pipeline", []).append(statistics.median(times))
        for name, call in calls.items():
            lone.setdefault(name, []).append(await _median(plan, call))
        record.save()


async def _saturated(
    plan: Plan, record: Record, server: Server, calls: dict[str, Call], bare: Worker
) -> None:
    saturated = record.figures.setdefault("saturated", {})
    for batch in plan.batches:
        # The first batch of its size pays for what is set up once.
        await asyncio.to_thread(bare.seconds, batch, 1)
    for _ in range(plan.turns):
        for batch in plan.batches:
            seconds = await asyncio.to_thread(bare.seconds, batch, plan.steps)
            saturated.setdefault(f"bare pipeline, batch {batch}", []).append(batch / seconds)
        for name, call in calls.items():
            rate = await _rate(plan, record, server, call)
            saturated.setdefault(name, []).append(rate)
        record.save()


async def _median(plan: Plan, call: Call) -> float:
    times = []
    for _ in range(plan.lone_calls):
        started = time.perf_counter()
        await call(SEEDS.randrange(2**53), plan.steps)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


async def _rate(plan: Plan, record: Record, server: Server, call: Call) -> float:
    """Pictures per second; the mean rows of a step are noted."""
    before = await _reading(server)
    run = await closed_loop(call, clients=plan.clients, seconds=plan.seconds, steps=(plan.steps,))
    record.figures["rows"] = occupancy.between([before, await _reading(server)], 0.0, 1.0)
    if run.success < 1:
        raise RuntimeError(f"only {run.success:.0%} of the calls were answered with a picture")
    return run.rate


async def _reading(server: Server) -> occupancy.Reading:
    return occupancy.parse(await _metrics(server), 0.0)


async def _metrics(server: Server) -> str:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"{server.url}/metrics")).text


@contextlib.asynccontextmanager
async def _memory(record: Record, server: Server) -> AsyncIterator[None]:
    """Keeps the most that the runner held of the device, and the least that was free, in MiB."""

    async def read() -> None:
        while True:
            note_memory(record.figures, await _metrics(server))
            await asyncio.sleep(1)

    reader = asyncio.create_task(read())
    try:
        yield
    finally:
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
            await reader


def note_memory(figures: dict[str, object], exposition: str) -> None:
    """Takes `used` and `free` over, in MiB, where more is used or less free than before."""
    for name, key, choose in ((USED, "used", max), (FREE, "free", min)):
        values = [
            float(line.split()[-1]) / 2**20
            for line in exposition.splitlines()
            if line.startswith((f"{name} ", f"{name}{{"))
        ]
        if values:
            figures[key] = choose([*values, figures[key]] if key in figures else values)
