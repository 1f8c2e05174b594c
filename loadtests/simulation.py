"""How many runners a rate of pictures takes: a discrete-event simulation around the product's own scheduling.

The device alone is a double. Scheduler, cost curves, batch caps, admission and the step loop are the server's, on
simpy's clock: a tick takes what the device's cost curve says, and what arrives meanwhile joins at the next one. A
request goes to the runner with the shortest predicted backlog, as one gateway sends it that hears of it at once.

What it leaves out: the network, the gateways (`docs/scaling.md` counts what they take) and failures. A tick's work is
booked when it begins instead of when it ends, so a choice of runner may be early by one step.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, TypeAlias

import simpy

from text2image.core.errors import Text2ImageError
from text2image.core.messages import Completed, Pixels, Request, Sampler, StreamOptions
from text2image.engine.admission import Backlog
from text2image.engine.costs import Curve, StepCosts
from text2image.engine.loop import Outcome, StepLoop
from text2image.engine.sample import BatchKey, Generation, Plan, Sample

# Seconds and steps of a request, in the order of arrival.
Arrivals: TypeAlias = Sequence[tuple[float, int]]

ROWS_OF_GUIDED = 2
SIDE = 512
KEY = BatchKey(SIDE)
# Defaults of the settings `request_timeout` and `max_backlog_seconds`.
TIME_LIMIT = 300.0
MAX_BACKLOG = 120.0
# The bound on p99, as a multiple of what the same request takes on an idle runner.
LATENCY_BOUND = 4.0
# Share of the requests that may be refused where the bound is said to hold.
REFUSED_AT_MOST = 0.001
# Arrivals before these do not count: the batches are not yet as full as they will be.
WARM_UP = 0.2
_PICTURE = Pixels(1, 1, b"\0\0\0")


@dataclass(frozen=True, slots=True)
class Profile:
    """What a device takes for pictures of one size.

    Attributes:
        steps: seconds of one step, by rows.
        decode: seconds to decode a picture.
        noise: standard deviation of the logarithm of a step's time.
        overhead: seconds of a request outside the runner.
    """

    steps: dict[int, float]
    decode: float
    noise: float = 0.0
    overhead: float = 0.0

    def grid(self) -> dict[int, float]:
        """The points that a warm-up would measure: 1, 2, 4, ... rows."""
        curve, rows = Curve(self.steps), (2**power for power in range(16))
        return {each: curve.at(each) for each in takewhile(lambda at: at <= max(self.steps), rows)}

    def alone(self, steps: int) -> float:
        """Seconds of a guided request on an idle runner."""
        return steps * Curve(self.steps).at(ROWS_OF_GUIDED) + self.decode + self.overhead

    def saturation(self, steps: float) -> float:
        """Pictures per second of a runner that always has more to do than fits in a batch."""
        curve = Curve(self.grid())
        cap = max(ROWS_OF_GUIDED, curve.best_rows)
        return 1 / (steps * curve.at(cap) * ROWS_OF_GUIDED / cap + self.decode)


@dataclass(slots=True)
class Device:
    """Keeps the model contract and does nothing but take its time."""

    profile: Profile
    random: random.Random
    curve: Curve = field(init=False)
    elapsed: float = 0.0
    memory: None = None

    def __post_init__(self) -> None:
        self.curve = Curve(self.profile.steps)

    def plan(self, request: Request) -> Plan:
        return Plan(KEY, ROWS_OF_GUIDED, passes=request.steps)

    def encode(self, samples: Sequence[Sample]) -> list[str]:
        return [""] * len(samples)

    def start(self, samples: Sequence[Sample]) -> None:
        """Takes no time."""

    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        seconds = self.curve.at(sum(sample.rows for sample in samples))
        self.elapsed += seconds * self.random.lognormvariate(0.0, self.profile.noise)
        return [None] * len(samples)

    def advance(
        self, samples: Sequence[Sample], predictions: Sequence[Any]
    ) -> list[Exception | None]:
        """Takes no time of its own: the curve holds a whole step's."""
        for sample in samples:
            sample.done = sample.step + 1 == sample.passes
        return [None] * len(samples)

    def decode(self, samples: Sequence[Sample]) -> list[Pixels]:
        self.elapsed += len(samples) * self.profile.decode
        return [_PICTURE] * len(samples)

    def decode_limit(self, sample: Sample) -> int:
        return 1

    def preview(self, sample: Sample) -> Pixels:
        return _PICTURE

    def release(self, sample: Sample) -> None:
        """Nothing is held."""

    def free_memory(self) -> None:
        """There is always enough."""


class Runner:
    """One device with the engine's parts around it, as a process of the simulation."""

    def __init__(self, world: simpy.Environment, profile: Profile, seed: int) -> None:
        self._world = world
        self._device = Device(profile, random.Random(seed))
        points = profile.grid()
        costs = StepCosts(KEY, points, max_rows=max(points), decode_seconds=profile.decode)
        self._backlog = Backlog(costs, MAX_BACKLOG)
        self._loop = StepLoop(
            self._device, costs, self._backlog, clock=self._now, emit=self._keep_endings
        )
        self._inbox: list[Generation] = []
        self._ended: list[tuple[Generation, Outcome]] = []
        self._wake = world.event()
        self.busy = 0.0
        self.backlog = 0.0
        self.endings: list[tuple[Generation, Outcome, float]] = []
        world.process(self._work())

    def submit(self, steps: int) -> None:
        """Admits a request, to be drawn from the next tick on.

        Raises:
            Text2ImageError: what admission refuses it with.
        """
        now = self._world.now
        request = _request(steps)
        generation = Generation.create(
            request,
            StreamOptions(),
            plan=self._device.plan(request),
            now=now,
            deadline=now + TIME_LIMIT,
        )
        self._backlog.admit(generation)
        self.backlog = self._backlog.seconds()
        self._inbox.append(generation)
        if not self._wake.triggered:
            self._wake.succeed()

    def _work(self) -> Generator[simpy.Event, None, None]:
        while True:
            if self._loop.idle and not self._inbox:
                self._wake = self._world.event()
                yield self._wake
            for generation in self._inbox:
                self._loop.add(generation)
            self._inbox.clear()
            self._loop.tick()
            yield self._pass_time()
            self.backlog = self._backlog.seconds()
            for generation, outcome in self._ended:
                self.endings.append((generation, outcome, self._world.now))
            self._ended.clear()

    def _pass_time(self) -> simpy.Event:
        """The end of the tick that was just computed, from which on the loop's clock is simpy's again."""
        seconds, self._device.elapsed = self._device.elapsed, 0.0
        self.busy += seconds
        return self._world.timeout(seconds)

    def _now(self) -> float:
        return float(self._world.now) + self._device.elapsed

    def _keep_endings(self, generation: Generation, outcome: Outcome) -> None:
        if isinstance(outcome, Completed | Text2ImageError):
            self._ended.append((generation, outcome))


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a simulated run, after its warm-up.

    Attributes:
        latencies: seconds of the requests that ended in a picture, in ascending order.
        slowdowns: the same, each as a multiple of what the request takes on an idle runner.
        failed: share of the requests that were refused or ended otherwise.
        rate: pictures per second between the first and the last that counts.
        utilisation: share of the time that the runners were at work.
    """

    latencies: Sequence[float]
    slowdowns: Sequence[float]
    failed: float
    rate: float
    utilisation: float

    def holds(self) -> bool:
        """Whether p99 keeps its bound, and next to nothing was refused."""
        return percentile(self.slowdowns, 99) <= LATENCY_BOUND and self.failed <= REFUSED_AT_MOST


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that this share of those in ascending order stays below; infinite if there are none."""
    if not values:
        return float("inf")
    return values[min(len(values) - 1, int(len(values) * percent / 100))]


def simulate(
    profile: Profile, arrivals: Arrivals, runners: int = 1, *, warm_up: float = WARM_UP
) -> Result:
    """Runs until all that arrived has ended; the first `warm_up` of the arrivals do not count."""
    world = simpy.Environment()
    fleet = [Runner(world, profile, seed) for seed in range(runners)]
    refused: list[float] = []

    def gateway() -> Generator[simpy.Event, None, None]:
        for due, steps in arrivals:
            yield world.timeout(max(0.0, due - world.now))
            try:
                min(fleet, key=lambda runner: runner.backlog).submit(steps)
            except Text2ImageError:
                refused.append(due)

    world.process(gateway())
    world.run()
    return _result(profile, arrivals, fleet, refused, warm_up)


def _result(
    profile: Profile,
    arrivals: Arrivals,
    fleet: Sequence[Runner],
    refused: Sequence[float],
    warm_up: float,
) -> Result:
    begin = arrivals[int(len(arrivals) * warm_up)][0]
    endings = [ending for runner in fleet for ending in runner.endings]
    drawn = [
        (at - generation.admitted_at + profile.overhead, generation.request.steps)
        for generation, outcome, at in endings
        if isinstance(outcome, Completed) and generation.admitted_at >= begin
    ]
    count = sum(due >= begin for due, _ in arrivals)
    last = max(at for *_, at in endings)
    # Of all that ended while requests still came: those at the end are not replaced by others.
    window = arrivals[-1][0] - begin
    during = sum(
        isinstance(outcome, Completed) and begin <= at <= begin + window
        for _, outcome, at in endings
    )
    return Result(
        latencies=sorted(latency for latency, _ in drawn),
        slowdowns=sorted(latency / profile.alone(steps) for latency, steps in drawn),
        failed=1 - len(drawn) / count,
        rate=during / window if window else 0.0,
        utilisation=sum(runner.busy for runner in fleet) / (last * len(fleet)),
    )


def _request(steps: int) -> Request:
    return Request(
        prompt="",
        negative_prompt="",
        width=SIDE,
        height=SIDE,
        steps=steps,
        guidance_scale=5.0,
        seed=0,
        n=1,
        sampler=Sampler.DPMPP_2M,
    )
