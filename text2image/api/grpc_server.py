"""The gateway's gRPC server: both contracts, health and reflection on one port."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from text2image.api import seed_grpc, v1_grpc
from text2image.gateway.generate import Gateway
from text2image.ports import address_of
from text2image.rpc import generic_handler
from text2image.settings import Settings

# A request may be larger than what is read of it, so that it is refused in the words of its contract and not of grpc.
REFUSABLE_FACTOR = 16
# Seconds that the last answers may take to reach their clients.
STOP_GRACE = 2.0
_SERVICES = (v1_grpc.SERVICE.full_name, seed_grpc.SERVICE.full_name)


class GrpcServer:
    """Serves a gateway over gRPC, from `start` to `stop`."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings
        self._health = HealthServicer()

    async def start(self) -> None:
        """Begins to listen.

        Raises:
            RuntimeError: the port is taken.
        """
        settings = self._settings
        self._server = server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes * REFUSABLE_FACTOR),
                ("grpc.max_send_message_length", -1),
                # Several workers share the port; a lone one must not share it with a stranger.
                ("grpc.so_reuseport", int(settings.gateway_workers > 1)),
            ]
        )
        v1 = v1_grpc.ImageGeneration(self._gateway, settings.request_timeout)
        seed = seed_grpc.Text2ImageService(self._gateway, settings.request_timeout)
        limit = settings.max_body_bytes
        server.add_generic_rpc_handlers(
            (
                generic_handler(v1_grpc.SERVICE, v1.methods, limit),
                generic_handler(seed_grpc.SERVICE, seed.methods, limit),
            )
        )
        add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(
            (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        server.add_insecure_port(address_of(settings.host, settings.grpc_port))
        await self._show_health()
        await server.start()
        self._following = asyncio.create_task(self._follow_readiness())

    async def stop(self) -> None:
        """Ends what is still open: all work is done by now, only watchers are left."""
        self._following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._following
        await self._server.stop(STOP_GRACE)

    async def _follow_readiness(self) -> None:
        async for _ in self._gateway.statuses():
            await self._show_health()

    async def _show_health(self) -> None:
        status = health_pb2.HealthCheckResponse
        shown = status.SERVING if self._gateway.is_ready else status.NOT_SERVING
        for service in ("", *_SERVICES):
            await self._health.set(service, shown)
