"""The runners as the gateway sees them: who is there, who will finish first, and what to do when one dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from text2image.core.errors import DeadlineExceeded, Unavailable
from text2image.core.lifecycle import draining
from text2image.core.limits import work_of
from text2image.core.messages import (
    Counters,
    Event,
    GeneratedImage,
    ModelInfo,
    ModelState,
    ModelStatus,
    Request,
    Share,
    State,
    Status,
    StreamOptions,
    UpscalerInfo,
)
from text2image.gateway.balancing import FleetLoad, first_to_finish
from text2image.gateway.discovery import follow, name_in
from text2image.gateway.election import Elected, elect
from text2image.gateway.refusals import Kind
from text2image.gateway.runner_link import RunnerLink, RunnerLost
from text2image.net.tls import Tls
from text2image.observe.metrics import GatewayMetrics

logger = logging.getLogger(__name__)

# What a client is told to wait when no runner can take its request, in seconds: about what loading takes.
NO_RUNNER_RETRY_AFTER = 5.0
# The longest pause before a request whose runner was lost asks a full one again, in seconds.
RESEND_PAUSE = 1.0


class Runners:
    """All runners of this gateway. `start` connects to them, `close` ends every call.

    By each name a gateway draws with one model. Where runners serve different ones, as while a new one is rolled out,
    it is that of most; the others get no work for that name. The default model is the default of most, likewise.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        retries: int,
        metrics: GatewayMetrics,
        tls: Tls | None = None,
    ) -> None:
        """
        Args:
            addresses: of runners, or that of a name to follow, as `ports.parse_runners` has them.
            retries: how often a request is sent again that has lost its runner.
            tls: what secures connections to other machines.
        """
        self._addresses = addresses
        self._retries = retries
        self._metrics = metrics
        self._tls = tls
        self._changed = asyncio.Event()
        self._closed = False
        self._elected = Elected()
        # What was voted on last.
        self._known: list[tuple[RunnerLink, bool, dict[str, ModelInfo]]] = []
        self._links: list[RunnerLink] = []
        # By the address that is followed, those found behind it.
        self._behind: dict[str, dict[str, RunnerLink]] = {}
        # The event loop alone would let go of a task that is still at work.
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        for index, address in enumerate(self._addresses):
            if name_in(address):
                self._behind[address] = {}
                self._keep(asyncio.create_task(follow(address, partial(self._found, address))))
            else:
                local = address.startswith("unix:")
                self._connect(f"runner {index if local else address}", address)

    async def close(self) -> None:
        self._closed = True
        self.notify()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self._links))

    def _connect(self, name: str, address: str, host: str = "") -> RunnerLink:
        link = RunnerLink(name, address, self.notify, tls=self._tls, host=host)
        link.start()
        self._links.append(link)
        return link

    def _found(self, followed: str, addresses: frozenset[str]) -> None:
        """Takes in who has come to a name, and lets go of who has left it.

        Whoever is out of the name and still in reach finishes what it has: it says itself that it takes no more.
        """
        known = self._behind[followed]
        for address in sorted(addresses - known.keys()):
            logger.info("runner %s has come", address)
            known[address] = self._connect(f"runner {address}", address, name_in(followed))
        for address in sorted(known.keys() - addresses):
            if known[address].is_lost:
                logger.info("runner %s has left", address)
                link = known.pop(address)
                self._links.remove(link)
                self._keep(asyncio.create_task(link.close()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def _ready(self) -> list[RunnerLink]:
        """Runners that draw with the default model."""
        return self._able("")

    @property
    def _working(self) -> list[RunnerLink]:
        """Runners that draw with any model."""
        return [link for link in self._links if link.is_ready and link in self._elected.working]

    def _able(self, name: str) -> list[RunnerLink]:
        """Runners that draw with the model of this name as the gateway does; with the default one if it is empty."""
        return [link for link in self._links if link.is_ready and self._elected.has(link, name)]

    @property
    def is_ready(self) -> bool:
        """Whether a request would find a runner."""
        return bool(self._ready)

    @property
    def status(self) -> Status:
        """All runners as one: its state is the best of theirs, its load the sum, its backlog the longest."""
        known = self._known_statuses
        states = {status.state for status in known}
        state = next(state for state in _BEST_FIRST if state in states)
        counters = {
            name: sum(getattr(status.counters, name) for status in known)
            for name in Counters.__dataclass_fields__
        }
        return Status(
            state=State.READY if self.is_ready else state,
            detail="; ".join(
                f"{link.name}: {link.status.detail}" for link in self._links if link.status.detail
            ),
            counters=Counters(**counters),
            models=tuple(self._status_of(model) for model in self._elected.models),
            **self.load._asdict(),
        )

    @property
    def _known_statuses(self) -> list[Status]:
        return [link.status for link in self._links if link not in self._elected.odd] or [_NOBODY]

    @property
    def load(self) -> FleetLoad:
        """What all runners have before them."""
        return FleetLoad.of(self._known_statuses)

    def _status_of(self, model: ModelInfo) -> ModelStatus:
        """How a model is on the runner that has come furthest with it."""
        told = [
            status
            for link in self._able(model.id)
            for status in link.status.models
            if status.name == model.id
        ]
        if not told:
            # Of an earlier version, which has no other model.
            state = ModelState.LOADED if self._able(model.id) else ModelState.FAILED
            return ModelStatus(name=model.id, revision=model.revision, state=state)
        furthest = min(told, key=lambda status: _FURTHEST.get(status.state, len(_FURTHEST)))
        ready = {name for status in told for name in status.adapters}
        waiting = {name for status in told for name in status.waiting_adapters} - ready
        return replace(
            furthest, adapters=tuple(sorted(ready)), waiting_adapters=tuple(sorted(waiting))
        )

    async def statuses(self) -> AsyncGenerator[Status, None]:
        """The status now and after each change, until `close`."""
        while not self._closed:
            changed = self._changed
            yield self.status
            await changed.wait()

    @property
    def elected(self) -> Elected:
        """The models that are drawn with now."""
        return self._elected

    @property
    def model(self) -> ModelInfo:
        """The model that is drawn with if none is named.

        Raises:
            Unavailable: no runner has been ready yet.
        """
        if self._elected.default is None:
            raise self._nobody()
        return self._elected.default

    @property
    def models(self) -> list[ModelInfo]:
        """All models, the default one first.

        Raises:
            Unavailable: no runner has been ready yet.
        """
        self.named(None)
        return self._elected.models

    @property
    def upscalers(self) -> tuple[UpscalerInfo, ...]:
        """What enlarges pictures."""
        return self._elected.upscalers

    def named(self, name: str | None) -> ModelInfo:
        """The model of this name or alias; the default one if there is none.

        Raises:
            ModelNotFound: none is called so.
            Unavailable: no runner has been ready yet.
        """
        default = self.model
        return self._elected.named(name) if name else default

    def serves(self, name: str) -> bool:
        """Whether a runner draws with the model of this name or alias, or would load it for a request.

        Raises:
            ModelNotFound, Unavailable: as `named` says.
        """
        model = self.named(name)
        return bool(self._able(model.id)) and self._status_of(model).state is not ModelState.FAILED

    @property
    def may_refuse_anything(self) -> bool:
        """Whether it is worth asking `refusal`."""
        ready = self._working
        return bool(ready) and all(link.refusals for link in ready)

    def refusal(
        self, patience: float, share: Share, shape: Request | None, *, claim: bool = False
    ) -> Unavailable | None:
        """What a request of an owner who waits for so long is refused with; None if it might be admitted.

        That is if all ready runners have just refused the like of it. `shape` as `shape_of` has it, None if that is not
        known; `claim` as `Refusals.find` has it.
        """
        anything = Kind.shaped(None, patience, share)
        kinds = [anything]
        if shape:
            kinds.append(anything._replace(shape=shape))
        refusal: Unavailable | None = None
        for link in self._able(shape.model) if shape else self._working:
            for kind in kinds:
                if refusal := link.refusals.find(kind, claim=claim):
                    break
            else:
                return None
        return refusal

    async def generate(
        self,
        request: Request,
        options: StreamOptions,
        deadline: float,
        share: Share,
        *,
        patience: float | None = None,
    ) -> AsyncGenerator[tuple[Event, ModelInfo], None]:
        """Streams a request's events from the runner that will finish it first, each with the model that it serves.

        When that runner dies, the request is sent again: it is complete down to its seed, so the pictures are the
        same; none is reported twice, but what else was reported may be. `deadline` is in the event loop's time, and
        `patience` what the client gave, in seconds.

        Raises:
            Text2ImageError: what the runner refused it with, or that none could finish it.
        """
        drawn: set[int] = set()
        losses = 0
        refused: list[RunnerLink] = []
        link = self._pick(request)
        while True:
            model = self._drawn_by(link, request)
            try:
                asked = link.generate(request, options, deadline, share, patience=patience)
                async with aclosing(asked) as events:
                    async for event in events:
                        if isinstance(event, GeneratedImage):
                            if event.index in drawn:
                                continue
                            drawn.add(event.index)
                        yield event, model
                return
            except RunnerLost as loss:
                losses += 1
                logger.warning("%s was lost in the middle of a request: %s", link.name, loss)
                if losses > self._retries:
                    raise _unavailable(
                        f"runners were lost {losses} times at this request"
                    ) from None
                self._metrics.resends.inc()
                pause = 0.0
            except Unavailable as refusal:
                if not losses:
                    # Its status was late: it has begun to drain, or others have filled it.
                    refused.append(link)
                    others = [each for each in self._able(request.model) if each not in refused]
                    # That a second one is full says enough of the rest.
                    if not others or (refusal.reason == Unavailable.FULL and len(refused) > 1):
                        raise
                    link = _first(others, request)
                    continue
                # Whoever was admitted before the loss should not pay for it with a refusal.
                pause = min(refusal.retry_after or 0.0, RESEND_PAUSE)
            link = await self._another(request, pause, deadline)

    def _drawn_by(self, link: RunnerLink, request: Request) -> ModelInfo:
        """The model that a ready runner draws a request with."""
        model = link.models.get(request.model) or link.model
        assert model, "a ready runner has told its model"
        return model

    async def _another(self, request: Request, pause: float, deadline: float) -> RunnerLink:
        """The runner to send a request to again, as soon as there is one."""
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.sleep(pause)
                while not self._able(request.model):
                    await self._changed.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                "the runner was lost, and none was ready again before the deadline"
            ) from None
        return self._pick(request)

    def _pick(self, request: Request) -> RunnerLink:
        ready = self._able(request.model)
        if not ready:
            raise self._nobody()
        return _first(ready, request)

    def _nobody(self) -> Unavailable:
        status = self.status
        if status.state is State.LOADING:
            return _unavailable("the model is loading", Unavailable.LOADING)
        if status.state is State.DRAINING:
            return draining()
        return _unavailable("no runner is at work; the server's log says why")

    def notify(self) -> None:
        """Takes note of a change of status, and wakes whoever waits for one."""
        # Most news is of loads alone, and there may be a hundred runners with fifty models each.
        known = [(link, link.is_ready, link.models) for link in self._links]
        if known != self._known:
            self._known, self._elected = known, elect(self._links, self._elected)
        self._metrics.runners_ready.set(len(self._ready))
        self._changed.set()
        self._changed = asyncio.Event()


_NOBODY = Status(state=State.LOADING, detail="no runner has been found yet")
_FURTHEST = {ModelState.LOADED: 0, ModelState.LOADING: 1, ModelState.IDLE: 2, ModelState.FAILED: 3}
_BEST_FIRST = (State.READY, State.LOADING, State.DRAINING, State.FAILED)


def _unavailable(message: str, reason: str = Unavailable.NO_RUNNER) -> Unavailable:
    return Unavailable(message, reason=reason, retry_after=NO_RUNNER_RETRY_AFTER)


def _first(runners: Sequence[RunnerLink], request: Request) -> RunnerLink:
    """The runner that is predicted to finish a request first, which may have to load its model before."""
    return first_to_finish(
        runners,
        work_of(request),
        until_loaded=lambda link: link.seconds_until_loaded(request.model),
    )
