"""The two services that BentoML runs: `bentoml serve service:Gateway` starts both, each in processes of its own.

Wiring only. The gateway depends on the runner so that BentoML starts it; requests do not travel that way, because
BentoML's client between services neither cancels nor outlives 100 calls. They go over gRPC, on a socket of our own.
With runners elsewhere (`T2I_RUNNERS`) the gateway starts none; `bentoml serve service:Runner` starts one alone.
"""

from __future__ import annotations

import gc

# Each process of a server imports all of this first. The collector would look through it again and again, a fifth of
# the time; all of it stays, so that it need not look at it later either.
gc.disable()

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import bentoml
import click

from text2image.api import bento
from text2image.api.app import http_app, middlewares
from text2image.api.batch import draw_batch
from text2image.api.browsers import cors_options
from text2image.api.protocol import refusing
from text2image.api.runner_http import guards
from text2image.api.server import GatewayServer
from text2image.api.unread import Unread
from text2image.core.extras import require_extras
from text2image.core.hardware import gpu_count, runner_count
from text2image.core.lifecycle import drain_on_signal, end_with_parent
from text2image.core.settings import get_settings
from text2image.engine.lazy import loader, source_of
from text2image.engine.readahead import read_ahead
from text2image.gateway.auth import openness, require_keys
from text2image.gateway.denylist import require_denylist
from text2image.gateway.provenance import require_signer
from text2image.gateway.safety import require_classifier
from text2image.net.ports import bound_to, require_free
from text2image.net.tls import require_usable, runner_tls_of, tls_of
from text2image.observe import logs
from text2image.ops.page import Page
from text2image.ops.readiness import METRICS, start_afresh
from text2image.runner.server import RunnerServer, exposure, require_guarded

gc.freeze()
gc.enable()

settings = get_settings()
tls = tls_of(settings)
logging.getLogger("text2image").setLevel(logging.INFO)
logs.set_up(settings.log_format)
app = http_app()


def metrics_folder() -> Path:
    """Makes a folder for this server's processes, names it to all that are started from now on, and the one in it."""
    folder = start_afresh(settings)
    os.environ["T2I_RUNTIME_DIR"] = str(folder)
    return folder / METRICS


bento.patch(refusing(Unread(app.state)), metrics_folder, settings.send_timeout)
# uvicorn believes any local process in what it says of its clients, unless told whom to believe.
os.environ["FORWARDED_ALLOW_IPS"] = settings.trusted_proxies or ""

# BentoML's own limits stand behind ours and must never be met first, since their answers are not in our words.
TRAFFIC = {"timeout": settings.longest_timeout + settings.drain_timeout + settings.drain_notice}
# Its access log decodes these two headers strictly, so that an odd byte in one would end the request with a 500.
LOGGING = {"access": {"request_content_type": False, "request_content_length": False}}
# Spans are our own (`text2image/observe/tracing.py`). BentoML's would be made for every message of every request, sent
# nowhere, and cost a quarter of the time that a request takes before it is refused.
TRACING = {"excluded_urls": [".*"]}
# Seconds that a request may take from the gateway that has taken it to the runner.
GATEWAY_LAG = 0.5
A_YEAR_MS = 365 * 24 * 3600 * 1000


@bentoml.service(
    name="text2image-runner",
    workers=runner_count(settings),
    http={"host": settings.host, "port": settings.port},
    ssl=tls.http_options() if tls else {"enabled": False},
    resources={"gpu": gpus} if (gpus := gpu_count()) else {},
    traffic=TRAFFIC,
    logging=LOGGING,
    tracing=TRACING,
    runner_connection={"max_requests": 10**9, "max_age": 1e9},
)
class Runner:
    """The engine of one device."""

    def __init__(self) -> None:
        # BentoML counts a service's workers from 1, and a restarted one takes the number of the dead.
        index = ((bentoml.server_context.worker_index or 1) - 1) % runner_count(settings)
        self.server = RunnerServer(
            settings, index, loader(settings, index), source_of(settings, index)
        )

    @bentoml.on_deployment
    @staticmethod
    def check_address() -> None:
        require_free(*asked_address(), "HTTP", "PORT")
        require_guarded(settings)
        for index in range(runner_count(settings)):
            if address := settings.listen_address_of(index):
                require_free(*address, "runners", "T2I_RUNNER_LISTEN")
        if warning := exposure(settings):
            click.echo(warning, err=True)

    @bentoml.on_deployment
    @staticmethod
    def check_files() -> None:
        require_keys(settings)
        require_usable(tls)
        require_usable(runner_tls_of(settings))

    @bentoml.on_deployment
    @staticmethod
    def read_files() -> None:
        read_ahead(settings)

    @bentoml.on_startup
    async def start(self) -> None:
        end_with_parent()
        await self.server.start()
        drain_on_signal(self.drain)

    async def drain(self) -> None:
        if settings.drain_notice and runner_host() is None:
            # Its gateway is sent the same signal, and goes on for so long.
            await asyncio.sleep(settings.drain_notice + GATEWAY_LAG)
        await self.server.drain(settings.drain_timeout)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await self.server.stop()

    async def __is_ready__(self) -> bool:
        return self.server.is_ready

    # The engine has its own admission, so BentoML's dispatcher should only collect.
    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=A_YEAR_MS)
    async def generate(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Draws a list of requests with the fields of POST /generate; each ends in pictures or an error of its own."""
        return await draw_batch(requests, self.server.generate_many, self.server.model_named)


def asked_address() -> tuple[str, int]:
    """Where HTTP is to be served: BentoML's command line overrules the settings."""
    context = click.get_current_context(silent=True)
    named = context.params if context else {}
    return named.get("host") or settings.host, named.get("port") or settings.port


def http_address() -> tuple[str, int]:
    """Where this process serves HTTP: BentoML's command line overrules the settings, and hands its workers a socket."""
    context = click.get_current_context(silent=True)
    descriptor = context.params.get("fd") if context else None
    return (settings.host, settings.port) if descriptor is None else bound_to(descriptor)


def runner_host() -> str | None:
    """Where this process serves a runner's HTTP; None if the gateway's BentoML has started it."""
    return None if bentoml.server_context.service_type == "service" else http_address()[0]


@bentoml.service(
    name="text2image-gateway",
    workers=settings.gateway_workers,
    traffic=TRAFFIC,
    logging=LOGGING,
    tracing=TRACING,
    http={"host": settings.host, "port": settings.port, **cors_options(settings.cors_origins)},
    ssl=tls.http_options() if tls else {"enabled": False},
    runner_probe={"enabled": False},
    # Its metrics are labelled with whatever path a client makes up, so ours are shown without them.
    metrics={"enabled": False},
)
@bentoml.asgi_app(app, path="/")
class Gateway:
    """HTTP and gRPC."""

    if not settings.runners:
        runner = bentoml.depends(Runner)

    @bentoml.on_deployment
    @staticmethod
    def check_extras() -> None:
        require_extras(settings)

    @bentoml.on_deployment
    @staticmethod
    def check_ports() -> None:
        host, port = asked_address()
        require_free(host, port, "HTTP", "PORT")
        require_free(settings.host, settings.grpc_port, "gRPC", "GRPC_PORT")
        if settings.page_port:
            require_free(settings.host, settings.page_port, "the page", "T2I_PAGE_PORT")

    @bentoml.on_deployment
    @staticmethod
    def check_keys() -> None:
        require_keys(settings)
        if warning := openness(settings, asked_address()[0], settings.host):
            click.echo(warning, err=True)

    @bentoml.on_deployment
    @staticmethod
    def check_certificate() -> None:
        require_usable(tls)
        require_usable(runner_tls_of(settings))

    @bentoml.on_deployment
    @staticmethod
    def check_provenance() -> None:
        require_signer(settings)
        require_denylist(settings)
        require_classifier(settings)

    @bentoml.on_deployment
    @staticmethod
    def show_page() -> None:
        if settings.page_port:
            Page().start()

    @bentoml.on_startup
    async def start(self) -> None:
        end_with_parent()
        self.server = GatewayServer(settings)
        app.state.gateway, app.state.jobs = self.server.gateway, self.server.jobs
        app.state.webhooks = self.server.webhooks
        await self.server.start(*http_address())
        drain_on_signal(self.server.drain)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await self.server.stop()

    async def __is_ready__(self) -> bool:
        return self.server.gateway.is_ready


for middleware, options in guards(settings, runner_host):
    Runner.add_asgi_middleware(middleware, **options)  # type: ignore[attr-defined] # it is BentoML's Service
for middleware, options in middlewares(settings, lambda: http_address()[0]):
    Gateway.add_asgi_middleware(middleware, **options)  # type: ignore[attr-defined] # it is BentoML's Service
