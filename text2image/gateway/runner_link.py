"""One runner at the other end of its socket: a connection that stays open, its latest status, and its calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeAlias

import grpc

from text2image import wire
from text2image.errors import DeadlineExceeded, Internal, Unavailable
from text2image.lifecycle import Ticket, draining
from text2image.messages import (
    Completed,
    Event,
    GenerationRequest,
    ModelInfo,
    Queued,
    Share,
    State,
    Status,
    StreamOptions,
)
from text2image.v1 import image_generation_pb2 as pb

logger = logging.getLogger(__name__)

# Seconds between an ended status stream and the next, so that a runner that refuses it is not called in a loop.
RECALL_PAUSE = 0.2
# A request that its runner has not yet answered counts as so many seconds of work.
UNANSWERED_SECONDS = 1.0
# What a client is told to wait when a runner's connection is overloaded, in seconds.
OVERLOADED_RETRY_AFTER = 1.0
# Seconds that a ready runner may take to describe its model.
MODEL_TIMEOUT = 10.0
# A runner that is stopped or stuck in its driver keeps its connections and says nothing. grpc's own threads answer
# pings, also while Python loads a model, so a ping without an answer means that the whole process stands still.
PING_INTERVAL_MS = 5000
PING_TIMEOUT_MS = 5000
_STARTING = Status(state=State.LOADING, detail="starting")
_SILENT = Status(state=State.FAILED, detail="does not answer")
# How grpc says that a ping was not answered; a connection that broke is that of a process that ended, and restarts.
_UNANSWERED_PING = ("ping timeout", "keepalive timeout")
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", wire.MAX_PICTURE_BYTES),
    # grpc itself waits for the socket to come back; a local one is worth asking for more often than its default.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", PING_INTERVAL_MS),
    # The better known keepalive_timeout_ms is overruled by this one.
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
]
# A runner always explains what it refuses. These without an explanation mean that it is gone, or going.
_BREAKING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)


_Call: TypeAlias = "grpc.aio.UnaryStreamCall[Any, pb.GenerateResponse]"


class RunnerLost(Exception):
    """The connection broke, or the runner ended the call without an answer."""


class RunnerLink:
    """A runner by its address; `on_change` is called whenever its status or reachability has changed."""

    def __init__(self, name: str, address: str, on_change: Callable[[], None]) -> None:
        self.name = name
        self.status = _STARTING
        self.model: ModelInfo | None = None
        self._address = address
        self._on_change = on_change
        self._unanswered = 0
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connects and stays connected, in the background, until `close`."""
        self._channel = grpc.aio.insecure_channel(self._address, options=_CHANNEL_OPTIONS)
        self._stub = wire.stub(self._channel)
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watching:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
            await self._channel.close()

    @property
    def is_ready(self) -> bool:
        return self.status.state is State.READY and self.model is not None

    @property
    def load(self) -> float:
        """Seconds of work before it, roughly."""
        return self.status.backlog_seconds + self._unanswered * UNANSWERED_SECONDS

    async def generate(
        self,
        request: GenerationRequest,
        options: StreamOptions,
        deadline: float,
        ticket: Ticket,
        share: Share,
    ) -> AsyncGenerator[Event, None]:
        """Streams a request's events; closing the generator ends the runner's work on it.

        Raises:
            RunnerLost: the runner went away before the end.
            Text2ImageError: as the runner says, or because the deadline passed or the time to drain is over.
        """
        seconds = max(0.0, deadline - asyncio.get_running_loop().time())
        call = self._stub.Generate(
            wire.request_to(request, options), timeout=seconds, metadata=wire.share_to(share)
        )
        ticket.cancel = call.cancel
        completed = False
        try:
            async with aclosing(self._events(call)) as events:
                async for event in events:
                    completed = completed or isinstance(event, Completed)
                    yield event
            if not completed:
                raise RunnerLost("the stream ended too early")
        except grpc.aio.AioRpcError as error:
            failure = self._translated(error)
            if isinstance(failure, RunnerLost):
                self._lost(error)
            raise failure from None
        except asyncio.CancelledError:
            if ticket.expired:
                raise draining() from None
            raise
        finally:
            call.cancel()
            ticket.cancel = None

    async def _events(self, call: _Call) -> AsyncGenerator[Event, None]:
        """The events of a call, which counts as unanswered until the first."""
        self._unanswered += 1
        answered = False
        try:
            async for message in call:
                event = wire.event_from(message)
                if not answered:
                    answered = True
                    self._unanswered -= 1
                if isinstance(event, Queued):
                    self._expect(event.predicted_seconds)
                if event is not None:
                    yield event
        finally:
            if not answered:
                self._unanswered -= 1

    def _expect(self, seconds: float) -> None:
        """Takes note of new work before the runner's next status does."""
        if seconds > self.status.backlog_seconds:
            self.status = replace(self.status, backlog_seconds=seconds)

    def _lost(self, error: grpc.aio.AioRpcError) -> None:
        """Believes nothing of this runner until its status stream has begun anew."""
        if not (self.status is _STARTING or self.status is _SILENT) and self._watching:
            self._watching.cancel()
            self.status = _status_after(error)
            self._watching = asyncio.create_task(self._watch())
            self._on_change()

    async def _watch(self) -> None:
        while True:
            status = _STARTING
            try:
                # Where nobody listens the call waits inside grpc, so nothing here polls.
                async for message in self._stub.WatchStatus(
                    pb.WatchStatusRequest(), wait_for_ready=True
                ):
                    await self._update(wire.status_from(message))
                logger.info("%s has ended its status stream", self.name)
            except grpc.aio.AioRpcError as error:
                logger.info("%s is out of reach: %s", self.name, error.details())
                status = _status_after(error)
            except Exception:
                logger.exception("%s is not understood", self.name)
            self.status = status
            self._on_change()
            await asyncio.sleep(RECALL_PAUSE)

    async def _update(self, status: Status) -> None:
        if status.state is State.READY and self.status.state is not State.READY:
            self.model = wire.model_from(
                await self._stub.GetModel(pb.GetModelRequest(), timeout=MODEL_TIMEOUT)
            )
            logger.info("%s is ready with %s on %s", self.name, self.model.id, self.model.device)
        self.status = status
        self._on_change()

    def _translated(self, error: grpc.aio.AioRpcError) -> Exception:
        ours = wire.error_from_rpc(error)
        if ours is not None:
            return ours
        code, said = error.code(), f"{error.code().name}: {error.details()}"
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded("the deadline passed before the pictures were finished")
        if code in _BREAKING:
            return RunnerLost(said)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            # Not the runner's own refusal, which would have come with a reason: grpc itself has no room.
            logger.warning("%s is overloaded: %s", self.name, said)
            return Unavailable(
                "the runner's connection is overloaded",
                reason=Unavailable.FULL,
                retry_after=OVERLOADED_RETRY_AFTER,
            )
        internal = Internal()
        logger.error("internal error %s: %s answered %s", internal.error_id, self.name, said)
        return internal


def _status_after(error: grpc.aio.AioRpcError) -> Status:
    """What is known of a runner when its connection is lost."""
    details = (error.details() or "").lower()
    return _SILENT if any(words in details for words in _UNANSWERED_PING) else _STARTING
