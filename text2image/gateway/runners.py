"""The runners as the gateway sees them: who is there, who has least to do, and what to do when one dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

from text2image.errors import DeadlineExceeded, Unavailable
from text2image.gateway.runner_link import RunnerLink, RunnerLost
from text2image.lifecycle import Ticket, draining
from text2image.messages import (
    Counters,
    Event,
    GeneratedImage,
    GenerationRequest,
    ModelInfo,
    Queued,
    Share,
    State,
    Status,
    StreamOptions,
)
from text2image.telemetry import GatewayMetrics

logger = logging.getLogger(__name__)

# What a client is told to wait when no runner can take its request, in seconds: about what loading takes.
NO_RUNNER_RETRY_AFTER = 5.0
# The longest pause before a request whose runner was lost asks a full one again, in seconds.
RESEND_PAUSE = 1.0


class Runners:
    """All runners of this gateway. `start` connects to them, `close` ends every call."""

    def __init__(self, sockets: Sequence[Path], retries: int, metrics: GatewayMetrics) -> None:
        self._retries = retries
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._closed = False
        self._links = [
            RunnerLink(f"runner {index}", f"unix:{socket}", self.notify)
            for index, socket in enumerate(sockets)
        ]

    def start(self) -> None:
        for link in self._links:
            link.start()

    async def close(self) -> None:
        self._closed = True
        self.notify()
        await asyncio.gather(*(link.close() for link in self._links))

    @property
    def is_ready(self) -> bool:
        """Whether a request would find a runner."""
        return any(link.is_ready for link in self._links)

    @property
    def status(self) -> Status:
        """All runners as one: its state is the best of theirs, its load the sum, its backlog the longest."""
        known = [link.status for link in self._links]
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
            backlog_seconds=max(status.backlog_seconds for status in known),
            active=sum(status.active for status in known),
            counters=Counters(**counters),
        )

    async def statuses(self) -> AsyncGenerator[Status, None]:
        """The status now and after each change, until `close`."""
        while not self._closed:
            changed = self._changed
            yield self.status
            await changed.wait()

    @property
    def model(self) -> ModelInfo:
        """The model that all runners serve; those of a new one while they take the place of others may differ.

        Raises:
            Unavailable: none has been ready yet.
        """
        for link in sorted(self._links, key=lambda link: not link.is_ready):
            if link.model:
                return link.model
        raise self._nobody()

    async def generate(
        self,
        request: GenerationRequest,
        options: StreamOptions,
        deadline: float,
        ticket: Ticket,
        share: Share,
    ) -> AsyncGenerator[tuple[Event, ModelInfo], None]:
        """Streams a request's events from the runner that has least to do, each with the model that runner serves.

        When that runner dies, the request is sent again: it is complete down to its seed, so the pictures are the
        same. None is reported twice; progress may begin again. `deadline` is in the event loop's time.

        Raises:
            Text2ImageError: what the runner refused it with, or that none could finish it.
        """
        drawn: set[int] = set()
        queued = False
        losses = 0
        link = self._least_loaded()
        while True:
            assert link.model, "a ready runner has told its model"
            model = link.model
            try:
                calls = link.generate(request, options, deadline, ticket, share)
                async with aclosing(calls) as events:
                    async for event in events:
                        if isinstance(event, Queued) and queued:
                            continue
                        if isinstance(event, GeneratedImage) and event.index in drawn:
                            continue
                        yield event, model
                        queued = True
                        if isinstance(event, GeneratedImage):
                            drawn.add(event.index)
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
                    raise
                pause = min(refusal.retry_after or 0.0, RESEND_PAUSE)
            link = await self._another(pause, deadline, ticket)

    async def _another(self, pause: float, deadline: float, ticket: Ticket) -> RunnerLink:
        """The runner to send a request to again, as soon as there is one."""
        ticket.cancel = self.notify
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.sleep(pause)
                while not self.is_ready and not ticket.expired:
                    await self._changed.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                "the runner was lost, and none was ready again before the deadline"
            ) from None
        finally:
            ticket.cancel = None
        if ticket.expired:
            raise draining()
        return self._least_loaded()

    def _least_loaded(self) -> RunnerLink:
        ready = [link for link in self._links if link.is_ready]
        if not ready:
            raise self._nobody()
        return min(ready, key=lambda link: link.load)

    def _nobody(self) -> Unavailable:
        status = self.status
        if status.state is State.LOADING:
            return _unavailable("the model is loading", Unavailable.LOADING)
        if status.state is State.DRAINING:
            return draining()
        return _unavailable("no runner is at work; the server's log says why")

    def notify(self) -> None:
        """Wakes whoever waits for a change of status."""
        self._metrics.runners_ready.set(sum(link.is_ready for link in self._links))
        self._changed.set()
        self._changed = asyncio.Event()


_BEST_FIRST = (State.READY, State.LOADING, State.DRAINING, State.FAILED)


def _unavailable(message: str, reason: str = Unavailable.NO_RUNNER) -> Unavailable:
    return Unavailable(message, reason=reason, retry_after=NO_RUNNER_RETRY_AFTER)
