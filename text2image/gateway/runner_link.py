"""One runner at the other end of its connection, which stays open: its latest status, its load, and its calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextvars import Context
from dataclasses import replace
from typing import Any

import grpc
from opentelemetry.trace import SpanKind

from text2image.core.errors import DeadlineExceeded, Internal, Unavailable
from text2image.core.limits import work_of
from text2image.core.loras import digest_of
from text2image.core.messages import (
    Completed,
    Event,
    ModelInfo,
    Queued,
    Request,
    Share,
    State,
    Status,
    StreamOptions,
)
from text2image.gateway.balancing import Load
from text2image.gateway.refusals import Kind, Refusals
from text2image.net import rpc_errors, wire
from text2image.net.proxies import DIRECT
from text2image.net.tls import BadCertificate, Tls
from text2image.observe import tracing
from text2image.v1 import image_generation_pb2 as pb

logger = logging.getLogger(__name__)

# Seconds between an ended status stream and the next, so that a runner that refuses it is not called in a loop.
RECALL_PAUSE = 0.2
# The same for a runner on another machine that cannot be reached.
REACH_PAUSE = 1.0
# What a client is told to wait when a runner's connection is overloaded, in seconds.
OVERLOADED_RETRY_AFTER = 1.0
# Seconds that a ready runner may take to describe its model.
MODEL_TIMEOUT = 10.0
# What loading a model is taken to take where the runner does not say, in seconds.
UNKNOWN_LOADING_SECONDS = 10.0
# A runner that is stopped or stuck in its driver keeps its connections and says nothing. grpc's own threads answer
# pings, also while Python loads a model, so a ping without an answer means that the whole process stands still.
PING_INTERVAL_MS = 5000
PING_TIMEOUT_MS = 5000
_STARTING = Status(state=State.LOADING, detail="starting")
_SILENT = Status(state=State.FAILED, detail="does not answer")
_AWAY = Status(state=State.FAILED, detail="cannot be reached")
_LOST = (_STARTING, _SILENT, _AWAY)
# How grpc says that a ping was not answered; a connection that broke is that of a process that ended, and restarts.
_UNANSWERED_PING = ("ping timeout", "keepalive timeout")
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", wire.MAX_PICTURE_BYTES),
    # grpc itself waits for the runner to come back; it is worth asking for more often than its default.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", PING_INTERVAL_MS),
    # The better known keepalive_timeout_ms is overruled by this one.
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    # Whatever the environment names one for: runners are of the same network.
    DIRECT,
]
# What one attempt to connect may take: a socket on this machine answers at once, or nobody listens.
_LOCAL_OPTIONS = [("grpc.min_reconnect_backoff_ms", 100)]
_REMOTE_OPTIONS = [("grpc.min_reconnect_backoff_ms", 3000)]
# A runner always explains what it refuses. These without an explanation mean that it is gone, or going.
_BREAKING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)


class RunnerLost(Exception):
    """The connection broke, or the runner ended the call without an answer."""


class RunnerLink:
    """A runner by its address; `on_change` is called whenever its status or reachability has changed."""

    def __init__(
        self,
        name: str,
        address: str,
        on_change: Callable[[], None],
        *,
        tls: Tls | None = None,
        host: str = "",
    ) -> None:
        """
        Args:
            tls: what secures the connection, unless it is a socket of this machine.
            host: the name that the runner's certificate must bear, if it is not in the address.
        """
        self.name = name
        self.status = _STARTING
        self.load = Load()
        self.refusals = Refusals()
        self.model: ModelInfo | None = None
        # By name, the default one, which is `model`, among them.
        self.models: dict[str, ModelInfo] = {}
        self.calls = 0
        self._address = address
        self._on_change = on_change
        self._is_local = address.startswith("unix:")
        self._tls = None if self._is_local else tls
        self._host = host
        self._watching: asyncio.Task[None] | None = None
        self._told = ""

    def start(self) -> None:
        """Connects and stays connected, in the background, until `close`.

        Raises:
            OSError: the certificate cannot be read.
        """
        self._connect()
        self._watching = asyncio.create_task(self._watch())

    def _connect(self) -> None:
        options: list[tuple[str, Any]] = [
            *_CHANNEL_OPTIONS,
            *(_LOCAL_OPTIONS if self._is_local else _REMOTE_OPTIONS),
        ]
        if self._tls:
            self._stamp = self._tls.stamp()
            if self._host:
                options.append(("grpc.ssl_target_name_override", self._host))
            credentials = self._tls.channel_credentials()
            self._channel = grpc.aio.secure_channel(self._address, credentials, options=options)
        else:
            self._channel = grpc.aio.insecure_channel(self._address, options=options)
        self._stub = wire.stub(self._channel)

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
    def is_lost(self) -> bool:
        """Whether it is out of reach, and nobody waits for anything from it."""
        return self.status in _LOST and not self.calls

    async def generate(
        self,
        request: Request,
        options: StreamOptions,
        deadline: float,
        share: Share,
        *,
        patience: float | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Streams a request's events; closing the generator ends the runner's work on it.

        `patience` is what the client gave for it, the seconds to the deadline if that is not known.

        Raises:
            RunnerLost: the runner went away before the end.
            Text2ImageError: as the runner says, or said a moment ago, or because the deadline passed.
        """
        seconds = max(0.0, deadline - asyncio.get_running_loop().time())
        # By what the client gave: what is left of it here is another number each time.
        kind = Kind.of(request, seconds if patience is None else patience, share)
        self.refusals.check(kind)
        span = tracing.start("runner", SpanKind.CLIENT)
        span.set_attribute("text2image.runner", self.name)
        # A runner of an earlier version has no other model, and no name for it.
        is_default = self.model is not None and request.model == self.model.id
        sent = replace(request, model="") if is_default else request
        call = self._stub.Generate(
            wire.request_to(sent, options),
            timeout=seconds,
            metadata=(*wire.share_to(share), *tracing.headers_of(span)),
        )
        self.calls += 1
        # What is drawn in the background nobody else waits for.
        counts = not share.background
        self.load.sent(call, counts * work_of(request))
        completed = False
        probing = contextlib.ExitStack()
        probing.enter_context(self.refusals.probe(kind))
        try:
            async for message in call:
                event = wire.event_from(message)
                if isinstance(event, Queued):
                    probing.close()
                    self.load.admitted(call, counts * event.predicted_seconds)
                elif isinstance(event, Completed):
                    completed = True
                if event is not None:
                    yield event
            if not completed:
                raise RunnerLost("the stream ended too early")
        except grpc.aio.AioRpcError as error:
            if completed:
                return
            failure = self._translated(error)
            tracing.failed(span, failure)
            if isinstance(failure, RunnerLost):
                self._lost(error)
            if isinstance(failure, Unavailable):
                self.refusals.keep(kind, failure)
                # It was told to the gateway; clients go by the retry delay.
                failure.lasts = 0.0
            raise failure from None
        finally:
            call.cancel()
            probing.close()
            self.load.over(call)
            span.end()
            self.calls -= 1

    def _lost(self, error: grpc.aio.AioRpcError) -> None:
        """Believes nothing of this runner until its status stream has begun anew."""
        if self.status not in _LOST and self._watching:
            self._watching.cancel()
            self.status = self._status_after(error)
            # Not as a part of the request that has noticed: it goes on when that is over.
            self._watching = asyncio.create_task(self._watch(), context=Context())
            self._on_change()

    async def _watch(self) -> None:
        while True:
            status = _STARTING
            try:
                # Where nobody listens on this machine the call waits inside grpc, so nothing here polls. What keeps
                # another machine from being reached grpc tells only to calls that do not wait.
                async for message in self._stub.WatchStatus(
                    pb.WatchStatusRequest(), wait_for_ready=self._is_local
                ):
                    await self._update(wire.status_from(message))
                logger.info("%s has ended its status stream", self.name)
            except grpc.aio.AioRpcError as error:
                self._tell(error.details() or error.code().name)
                status = self._status_after(error)
            except Exception:
                logger.exception("%s is not understood", self.name)
            self.status = status
            self._on_change()
            await asyncio.sleep(RECALL_PAUSE if self._is_local else REACH_PAUSE)
            await self._renew()

    def _tell(self, reason: str) -> None:
        """Says what keeps the runner out of reach, once."""
        if reason != self._told:
            self._told = reason
            logger.warning("%s is out of reach: %s", self.name, reason)

    async def _renew(self) -> None:
        """Connects anew if the certificate was renewed; grpc would go on with the one that it was given."""
        if not self._tls or self.calls:
            return
        try:
            if self._tls.stamp() == self._stamp:
                return
            self._tls.check()
            former = self._channel
            self._connect()
        except (OSError, BadCertificate) as error:
            self._tell(f"the certificate cannot be shown: {error}")
            return
        await former.close()

    async def _update(self, status: Status) -> None:
        self._told = ""
        self.load.update(status)
        known = {
            (model.id, model.revision, digest_of(model.loras, model.controls))
            for model in self.models.values()
        }
        told = {(model.name, model.revision, model.offers) for model in status.models}
        is_new = self.status.state is not State.READY
        if status.state is State.READY and (is_new or (told and told != known)):
            models = await self._ask_models(several=bool(told))
            self.model, self.models = models[0], {model.id: model for model in models}
            if is_new:
                logger.info("%s is ready with %s on %s", self.name, models[0].id, models[0].device)
        self.status = status
        self._on_change()

    async def _ask_models(self, *, several: bool) -> list[ModelInfo]:
        """What the runner serves, the default model first; one of an earlier version has no more than that."""
        if several:
            listed = await self._stub.ListModels(pb.ListModelsRequest(), timeout=MODEL_TIMEOUT)
            return wire.models_from(listed)
        only = await self._stub.GetModel(pb.GetModelRequest(), timeout=MODEL_TIMEOUT)
        return [wire.model_from(only)]

    def seconds_until_loaded(self, name: str) -> float:
        """Predicted seconds until the runner could begin with a model, by its last status."""
        for model in self.status.models:
            if model.name == name:
                return UNKNOWN_LOADING_SECONDS if model.seconds is None else model.seconds
        return 0.0

    def _status_after(self, error: grpc.aio.AioRpcError) -> Status:
        """What is known of a runner when its connection is lost."""
        details = (error.details() or "").lower()
        if any(words in details for words in _UNANSWERED_PING):
            return _SILENT
        # On this machine it is started again; what another machine does nobody knows.
        return _STARTING if self._is_local else _AWAY

    def _translated(self, error: grpc.aio.AioRpcError) -> Exception:
        ours = rpc_errors.error_from(error)
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
