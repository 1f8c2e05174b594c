"""Several gateways and runners in simulated time: real engines' loops, and real gateways' choice between them.

A runner is a step loop around the timed double. Each gateway hears of its backlog every so often and somewhat late, as
over a network, and knows at once only what it has sent itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random

from tests.doubles import NATIVE, Clock, TimedModel, make_request
from tests.harness import Harness
from text2image.core.limits import MEGA, work_of
from text2image.core.messages import Request, State, Status
from text2image.engine.sample import Generation
from text2image.gateway.balancing import Load

# How often the engine tells its status at most, and the way to a gateway, in seconds.
STATUS_INTERVAL = 0.2
DELAY = 0.02
PATIENCE = 1e6


class Runner:
    """One engine, which is brought up to a time by whoever asks for it."""

    def __init__(self, slowdown: float = 1.0) -> None:
        self.harness = Harness(TimedModel(slowdown=slowdown), max_rows=16)
        self.arrived: dict[Generation, float] = {}
        self.seconds: list[float] = []

    def advance(self, now: float) -> None:
        clock, loop = self.harness.clock, self.harness.loop
        while not loop.idle and clock.now < now:
            loop.tick()
            for generation in [each for each in self.arrived if each.ended]:
                self.seconds.append(clock.now - self.arrived.pop(generation))
        clock.now = max(clock.now, now)

    def finish(self) -> None:
        """Goes on until nothing is left to do."""
        while not self.harness.loop.idle:
            self.advance(self.harness.clock.now + 1.0)

    def take(self, request: Request, now: float) -> float:
        """The predicted seconds until the picture."""
        generation = self.harness.submit(request, seconds=PATIENCE)
        self.arrived[generation] = now
        return self.harness.predicted[generation]

    @property
    def status(self) -> Status:
        model = self.harness.model
        pace = self.harness.backlog.pace(NATIVE, 2) * MEGA / (model.info.width * model.info.height)
        return Status(state=State.READY, backlog_seconds=self.harness.backlog.seconds(), pace=pace)


@dataclass
class Link:
    """A runner as one gateway sees it."""

    runner: Runner
    load: Load


Choose = Callable[[Sequence[Link], int], Link]


class Fleet:
    """Runners, and gateways that each have their own way to choose; requests come to gateways at random."""

    def __init__(
        self, runners: Sequence[Runner], policies: Sequence[Choose], seed: int = 1
    ) -> None:
        self._runners = runners
        self._policies = policies
        self._clock = Clock()
        self._random = Random(seed)
        self._gateways = [[Link(each, Load(self._clock)) for each in runners] for _ in policies]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def run(self, arrivals: Sequence[tuple[float, Request]]) -> list[float]:
        """Seconds that each request took."""
        self._last = arrivals[-1][0]
        for runner in range(len(self._runners)):
            self._at(self._random.random() * STATUS_INTERVAL, partial(self._tell, runner))
        for time, request in arrivals:
            self._at(time, partial(self._arrive, request))
        while self._events:
            self._clock.now, _, act = heapq.heappop(self._events)
            for each in self._runners:
                each.advance(self._clock.now)
            act()
        for each in self._runners:
            each.finish()
        return [seconds for each in self._runners for seconds in each.seconds]

    def _at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), act))

    def _tell(self, runner: int) -> None:
        """Sends a runner's status to every gateway, and again later."""
        now, status = self._clock.now, self._runners[runner].status
        for links in self._gateways:
            self._at(now + DELAY, partial(links[runner].load.update, status))
        if now < self._last:
            self._at(now + STATUS_INTERVAL, partial(self._tell, runner))

    def _arrive(self, request: Request) -> None:
        gateway = self._random.randrange(len(self._gateways))
        work = work_of(request)
        link = self._policies[gateway](self._gateways[gateway], work)
        link.load.sent(request, work)
        predicted = link.runner.take(request, self._clock.now)
        link.load.admitted(request, predicted)


def poisson(
    rate: float, count: int, steps: Sequence[int], seed: int = 1
) -> list[tuple[float, Request]]:
    """Requests that come independently of each other, with step counts drawn from these."""
    random = Random(seed)
    now, arrivals = 0.0, []
    for number in range(count):
        now += random.expovariate(rate)
        arrivals.append((now, make_request(steps=random.choice(steps), seed=number)))
    return arrivals
