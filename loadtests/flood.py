"""Hundreds of times the capacity: what is left for drawing while nearly everybody must be refused.

Generator and server share the cores, so the capacity is measured while the same generator floods another server, which
refuses all and does nothing else. `python -m loadtests.flood --help` has both, each for a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from http import HTTPStatus

import httptools

from loadtests.overload import PATIENCE
from loadtests.pages import progress, spread, table
from loadtests.sections import Bench, Figures, Section, Yardstick
from tests.e2e.harness import ROOT, Server, free_port

# Arrivals for each picture that the server could draw.
TIMES = 300.0
# More than can be admitted at once, and those that wait for a refusal.
CONNECTIONS = 256
FOR_EVER = 1e6
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}"


@dataclass(frozen=True, slots=True)
class Flood:
    """One pair of measurements; what is counted is counted by the second.

    Attributes:
        capacity: pictures of the saturated server while another one is flooded.
        goodput: pictures while it is flooded itself.
        arrivals: requests of that flood that were answered.
        refusal: seconds of the gateways' CPU for each refusal, all that they do beside it included.
    """

    capacity: float
    goodput: float
    arrivals: float
    refusal: float


async def measure(bench: Bench) -> Figures:
    """So many floods, one after the other."""
    capacity = await bench.saturation()
    floods = []
    for turn in range(bench.plan.turns):
        floods.append(await measure_flood(bench, capacity))
        progress(f"flood, turn {turn + 1}: {floods[-1]}")
    return {"floods": [asdict(flood) for flood in floods]}


async def measure_flood(bench: Bench, capacity: float) -> Flood:
    """Floods another server while this one draws, and then this one."""
    rate, seconds = TIMES * capacity, bench.plan.seconds
    with refusing() as port, flooding(port, rate, FOR_EVER):
        saturated = await bench.saturation()
    with flooding(bench.server.http_port, rate, PATIENCE + seconds) as generator:
        # The first arrivals must have been answered before it shows what is left for drawing.
        await asyncio.sleep(PATIENCE)
        before = _cpu(bench.server)
        statuses = await asyncio.to_thread(statuses_of, generator)
        used = _cpu(bench.server) - before
    answers = sum(statuses.values())
    drawn = statuses[HTTPStatus.OK]
    return Flood(saturated, drawn / seconds, answers / seconds, used / max(1, answers - drawn))


def text(figures: Figures) -> str:
    """The figures as Markdown."""
    floods = [Flood(**each) for each in figures["floods"]]
    rows = (
        ("pictures/s while another server is flooded", [each.capacity for each in floods]),
        ("pictures/s while it is flooded", [each.goodput for each in floods]),
        ("ratio", [each.goodput / each.capacity for each in floods]),
        ("answers/s of the flood", [each.arrivals for each in floods]),
        ("gateway's CPU for each refusal, ms", [1000 * each.refusal for each in floods]),
    )
    return f"""The same generator floods the server, or one beside it that refuses everything; generator and servers
share the cores.

{table(("", ""), ((name, spread(values)) for name, values in rows))}"""


def yardsticks(figures: Figures) -> list[Yardstick]:
    shares = [each["goodput"] / each["capacity"] for each in figures["floods"]]
    return [(f"goodput at {TIMES:g} times the capacity ÷ capacity", spread(shares), "≥ 0.9")]


FLOOD = Section("flood", f"{TIMES:g} times the capacity, over HTTP", measure, text, yardsticks)


def _cpu(server: Server) -> float:
    times = [process.cpu_times() for process in server.gateways()]
    return sum(each.user + each.system for each in times)


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """The port of a server that refuses everything."""
    port = free_port()
    with _child("--refuse", str(port)) as server:
        assert server.stdout
        assert server.stdout.readline(), "the other server does not listen"
        yield port


@contextlib.contextmanager
def flooding(port: int, rate: float, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process that floods a port, and then tells what it was answered after the first `PATIENCE` seconds."""
    words = ("--port", str(port), "--rate", str(rate), "--seconds", str(seconds))
    with _child(*words) as generator:
        yield generator


def statuses_of(generator: subprocess.Popen[str]) -> Counter[int]:
    """Answers by their status, once a generator has ended."""
    told, _ = generator.communicate()
    return Counter({int(status): count for status, count in json.loads(told).items()})


@contextlib.contextmanager
def _child(*words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "loadtests.flood", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


class _Connection(asyncio.Protocol):
    """Asks one thing at a time, and says when it may ask again."""

    def __init__(self, generator: _Generator) -> None:
        self._generator = generator
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._generator.idle.append(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._generator.statuses[self._parser.get_status_code()] += 1
        self._generator.idle.append(self)

    def ask(self, request: bytes) -> None:
        self._transport.write(request)


class _Generator:
    """Poisson arrivals; one that finds no free connection is lost."""

    def __init__(self, port: int) -> None:
        self.idle: list[_Connection] = []
        self.statuses: Counter[int] = Counter()
        self._port = port
        body = json.dumps({"text": "a red apple", "guidance_scale": 5.0}).encode()
        self._request = (
            f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"X-Request-Timeout: {PATIENCE:g}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def run(self, rate: float, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        started = time.perf_counter()
        due, settled = 0.0, False
        while due < seconds:
            now = time.perf_counter() - started
            while due <= now:
                if self.idle:
                    self.idle.pop().ask(self._request)
                due += random.expovariate(rate)
            await asyncio.sleep(due - now)
            if not settled and now > PATIENCE:
                settled = True
                self.statuses.clear()


class _Refuser(asyncio.Protocol):
    """Refuses each request once it has all of it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(REFUSAL)


async def _refuse(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(_Refuser, "127.0.0.1", port)
    print("listening", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--refuse", type=int, metavar="PORT", help="refuse all that comes there")
    parser.add_argument("--port", type=int, help="of a server on this machine, to flood")
    parser.add_argument("--rate", type=float, help="requests a second")
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    if options.refuse:
        asyncio.run(_refuse(options.refuse))
    generator = _Generator(options.port)
    asyncio.run(generator.run(options.rate, options.seconds))
    print(json.dumps(generator.statuses))


if __name__ == "__main__":
    main()
