"""A runner process: loads the model in the background and serves gRPC v1 on its private socket, and on a port if set.

Importing this module loads no torch; the engine's thread does that when it loads the model.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from text2image.core.addresses import address_of, is_loopback
from text2image.core.errors import Text2ImageError
from text2image.core.folders import private_folder
from text2image.core.hires import require_single
from text2image.core.messages import (
    Completed,
    GeneratedImage,
    ModelInfo,
    Request,
    RequestParams,
    State,
    Status,
    StreamOptions,
)
from text2image.core.settings import Settings
from text2image.core.validation import resolve
from text2image.engine.adapters.requests import Budgets
from text2image.engine.engine import Engine
from text2image.engine.manager import Source
from text2image.engine.worker import Load
from text2image.net import wire
from text2image.net.rpc import as_ours
from text2image.net.tls import runner_tls_of
from text2image.observe import metrics, tracing
from text2image.runner.metrics import RunnerMetrics
from text2image.runner.service import RunnerService

logger = logging.getLogger(__name__)

# How long calls that are still open may take to end once the socket is closed.
_CLOSE_SECONDS = 1.0
# How often gateways are pinged that say nothing, and how long they may take to answer.
PING_INTERVAL_MS = 20_000
PING_TIMEOUT_MS = 10_000
# Exit status of a process whose device is lost (EX_SOFTWARE); the supervisor starts another.
_DEVICE_LOST_STATUS = 70


@dataclass(frozen=True, slots=True)
class Drawn:
    """A resolved request, its finished pictures, in the order of their index, and how it ended."""

    request: Request
    images: tuple[GeneratedImage, ...]
    completed: Completed


def exposure(settings: Settings) -> str | None:
    """A warning where whoever reaches a runner's port may send it work, else None."""
    address = settings.listen_address_of(0)
    if address is None or is_loopback(address[0]) or runner_tls_of(settings):
        return None
    return (
        f"WARNING: whoever reaches {address_of(*address)} has the runner's whole time. Set "
        "T2I_RUNNER_TLS_CERT, T2I_RUNNER_TLS_KEY and T2I_RUNNER_TLS_CA to let in gateways alone."
    )


def require_guarded(settings: Settings) -> None:
    """Does nothing unless a runner's port would let in whom its server asks for a key.

    Raises:
        SystemExit: with one line that says which, and what to set.
    """
    if settings.keys_file and settings.runner_listen and not runner_tls_of(settings):
        raise SystemExit(
            f"text2image: T2I_RUNNER_LISTEN={settings.runner_listen} would draw for anybody without a key of "
            "T2I_KEYS_FILE: set T2I_RUNNER_TLS_CERT, T2I_RUNNER_TLS_KEY and T2I_RUNNER_TLS_CA to let in gateways alone"
        )


class RunnerServer:
    """One engine and its gRPC server. All methods are called from one event loop."""

    def __init__(
        self, settings: Settings, index: int, load: Load, source: Source | None = None
    ) -> None:
        """Prepares runner number `index`, whose default model `load` loads, and `source` the others."""
        self._settings = settings
        self._socket = settings.socket_of(index)
        self._port = settings.listen_address_of(index)
        self._metrics = RunnerMetrics(index)
        self._engine = Engine(
            load,
            source=source,
            model_memory=settings.model_memory,
            budgets=Budgets(settings.adapter_memory, settings.controlnet_memory),
            max_batch_rows=settings.max_batch_rows,
            max_backlog_seconds=settings.max_backlog_seconds,
            memory_reserve=settings.memory_reserve,
            observer=self._metrics,
            on_device_lost=lambda: os._exit(_DEVICE_LOST_STATUS),
        )
        self._server: grpc.aio.Server | None = None
        self._metrics_task: asyncio.Task[None] | None = None
        self._export: tracing.Export | None = None

    @property
    def status(self) -> Status:
        return self._engine.status

    @property
    def is_ready(self) -> bool:
        return self.status.state is State.READY

    def model_named(self, name: str) -> ModelInfo:
        """One of the models that this runner serves.

        Raises:
            ModelNotFound: it serves none of this name.
            Unavailable: the default one is not loaded yet.
        """
        return self._engine.model_named(name)

    async def start(self) -> None:
        """Starts loading the model and listens; `is_ready` turns true after the warm-up."""
        self._export = tracing.set_up(self._settings.otlp_endpoint, "text2image-runner")
        metrics.forget_the_dead()
        self._engine.start()
        self._metrics_task = asyncio.create_task(self._keep_metrics())
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_send_message_length", wire.MAX_PICTURE_BYTES),
                ("grpc.max_receive_message_length", wire.MAX_REQUEST_BYTES),
                # Its gateways ping it every few seconds to notice when it hangs.
                ("grpc.http2.max_ping_strikes", 0),
                # And it pings them: what a gateway asked for that is gone without a word is not for anybody.
                ("grpc.keepalive_time_ms", PING_INTERVAL_MS),
                ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
                # Two engines behind one port would take each other's work.
                ("grpc.so_reuseport", 0),
            ]
        )
        self._server.add_generic_rpc_handlers(
            (RunnerService(self._engine, self._settings).handler(),)
        )
        private_folder(self._socket.parent)
        # What a killed predecessor left behind would keep the address taken.
        self._socket.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{self._socket}")
        if self._port:
            address, tls = address_of(*self._port), runner_tls_of(self._settings)
            if tls:
                self._server.add_secure_port(address, tls.grpc_credentials())
            else:
                self._server.add_insecure_port(address)
        await self._server.start()
        logger.info("runner listens on %s", address_of(*self._port) if self._port else self._socket)

    async def drain(self, grace: float) -> None:
        """Refuses new requests and waits for the admitted ones, at most `grace` seconds."""
        if not await self._engine.drain(grace):
            logger.warning("admitted requests were still unfinished after %.0f s", grace)

    async def stop(self) -> None:
        """Closes the socket and ends the engine's thread."""
        if self._server is not None:
            await self._server.stop(_CLOSE_SECONDS)
        if self._metrics_task is not None:
            self._metrics_task.cancel()
        await self._engine.stop()
        if self._export:
            await self._export.close()

    async def generate_many(
        self, requests: Sequence[RequestParams]
    ) -> list[Drawn | Text2ImageError]:
        """Draws a list of requests side by side; each ends in its own pictures or its own error."""
        return list(await asyncio.gather(*(self._generate_one(params) for params in requests)))

    async def _generate_one(self, params: RequestParams) -> Drawn | Text2ImageError:
        try:
            model = self._engine.model_named(params.model)
            request = require_single(resolve(params, model))
            time_limit = self._settings.request_timeout
            stream = self._engine.generate(request, StreamOptions(), time_limit=time_limit)
            events = [event async for event in stream]
        except Exception as error:
            return as_ours(error)
        images = [event for event in events if isinstance(event, GeneratedImage)]
        completed = next(event for event in events if isinstance(event, Completed))
        return Drawn(request, tuple(sorted(images, key=lambda image: image.index)), completed)

    async def _keep_metrics(self) -> None:
        async for status in self._engine.watch(min_interval=1.0):
            if status.state is State.READY:
                self._metrics.serves(self._engine.model)
            self._metrics.update(status, status.waiting, self._engine.memory)
