"""The two services that BentoML runs: `bentoml serve service:Gateway` starts both, each in processes of its own.

Wiring only. The gateway depends on the runner so that BentoML starts it; requests do not travel that way, because
BentoML's client between services neither cancels nor outlives 100 calls. They go over gRPC, on a socket of our own.
"""

from __future__ import annotations

import logging
from typing import Any

import bentoml
import click

from text2image.api.app import http_app
from text2image.api.asgi import longest_timeout
from text2image.api.batch import draw_batch
from text2image.api.server import GatewayServer
from text2image.hardware import gpu_count, runner_count
from text2image.lifecycle import drain_on_signal
from text2image.ports import require_free
from text2image.runner.server import RunnerServer
from text2image.settings import get_settings

settings = get_settings()
logging.getLogger("text2image").setLevel(logging.INFO)
app = http_app()

# BentoML's own limits stand behind ours and must never be met first, since their answers are not in our words.
TRAFFIC = {"timeout": longest_timeout(settings) + settings.drain_timeout}
# Its access log decodes these two headers strictly, so that an odd byte in one would end the request with a 500.
LOGGING = {"access": {"request_content_type": False, "request_content_length": False}}
A_YEAR_MS = 365 * 24 * 3600 * 1000


@bentoml.service(
    name="text2image-runner",
    workers=runner_count(settings),
    resources={"gpu": gpus} if (gpus := gpu_count()) else {},
    traffic=TRAFFIC,
    logging=LOGGING,
    runner_connection={"max_requests": 10**9, "max_age": 1e9},
)
class Runner:
    """The engine of one device."""

    def __init__(self) -> None:
        # BentoML counts a service's workers from 1, and a restarted one takes the number of the dead.
        index = ((bentoml.server_context.worker_index or 1) - 1) % runner_count(settings)
        self.server = RunnerServer(settings, index)

    @bentoml.on_startup
    async def start(self) -> None:
        await self.server.start()
        drain_on_signal(lambda: self.server.drain(settings.drain_timeout))

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await self.server.stop()

    async def __is_ready__(self) -> bool:
        return self.server.is_ready

    # The engine has its own admission, so BentoML's dispatcher should only collect.
    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=A_YEAR_MS)
    async def generate(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Draws a list of requests with the fields of POST /generate; each ends in pictures or an error of its own."""
        return await draw_batch(requests, self.server.generate_many, lambda: self.server.model)


@bentoml.service(
    name="text2image-gateway",
    workers=settings.gateway_workers,
    traffic=TRAFFIC,
    logging=LOGGING,
    http={"host": settings.host, "port": settings.port},
    runner_probe={"enabled": False},
    # Its metrics are labelled with whatever path a client makes up, so ours are shown without them.
    metrics={"enabled": False},
)
@bentoml.asgi_app(app, path="/")
class Gateway:
    """HTTP and gRPC."""

    runner = bentoml.depends(Runner)

    @bentoml.on_deployment
    @staticmethod
    def check_ports() -> None:
        context = click.get_current_context(silent=True)
        named = context.params if context else {}
        host, port = named.get("host") or settings.host, named.get("port") or settings.port
        require_free(host, port, "HTTP", "PORT")
        require_free(settings.host, settings.grpc_port, "gRPC", "GRPC_PORT")

    @bentoml.on_startup
    async def start(self) -> None:
        self.server = GatewayServer(settings)
        app.state.gateway = self.server.gateway
        await self.server.start()
        drain_on_signal(self.server.drain)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await self.server.stop()

    async def __is_ready__(self) -> bool:
        return self.server.gateway.is_ready
