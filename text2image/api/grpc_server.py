"""The gateway's gRPC server: both contracts, health and reflection on one port."""

from __future__ import annotations

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from text2image.api import health, reflection, seed_grpc, v1_grpc, v1_jobs_grpc
from text2image.api.asgi import PICTURES
from text2image.core.addresses import address_of
from text2image.core.settings import Settings
from text2image.gateway.generate import Gateway
from text2image.jobs.jobs import Jobs
from text2image.net.rpc import Handler, generic_handler
from text2image.net.tls import tls_of

# A request may be larger than what is read of it, so that it is refused in the words of its contract and not of grpc.
REFUSABLE_FACTOR = 8
# A client that went without a word, as a machine that was unplugged does, is noticed after the sum of both.
PING_INTERVAL_MS = 20_000
PING_TIMEOUT_MS = 10_000
# Clients that want to notice the same of us may ping this often, between calls too. grpc-go, grpc-java and sidecars do
# so every 10 s at most unless they are told otherwise; who pings every 2 s is still far from being cut off.
CLIENT_PING_MS = 1_000
# Seconds that the last answers may take to reach their clients.
STOP_GRACE = 2.0
_SERVICES = tuple(each.SERVICE.full_name for each in (v1_grpc, v1_jobs_grpc, seed_grpc))


class GrpcServer:
    """Serves a gateway and its jobs over gRPC, from `start` to `stop`."""

    def __init__(self, gateway: Gateway, settings: Settings, jobs: Jobs) -> None:
        self._gateway = gateway
        self._jobs = jobs
        self._settings = settings

    async def start(self) -> None:
        """Begins to listen.

        Raises:
            RuntimeError: the port is taken.
        """
        settings = self._settings
        limit, pictures = settings.max_body_bytes, PICTURES * settings.max_image_bytes
        self._server = server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit * REFUSABLE_FACTOR + pictures),
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_time_ms", PING_INTERVAL_MS),
                ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
                ("grpc.http2.min_ping_interval_without_data_ms", CLIENT_PING_MS),
                # Else a client without a call may ping every two hours.
                ("grpc.keepalive_permit_without_calls", 1),
                # Several workers share the port; a lone one must not share it with a stranger.
                ("grpc.so_reuseport", int(settings.gateway_workers > 1)),
            ]
        )
        server.add_generic_rpc_handlers(
            tuple(
                generic_handler(
                    service,
                    methods,
                    limit,
                    send_timeout=settings.send_timeout,
                    picture_bytes=pictures,
                )
                for service, methods in self._methods().items()
            )
        )
        address = address_of(settings.host, settings.grpc_port)
        if tls := tls_of(settings):
            server.add_secure_port(address, tls.grpc_credentials())
        else:
            server.add_insecure_port(address)
        await server.start()

    async def stop(self) -> None:
        """Ends what is still open: all work is done by now, only watchers are left."""
        await self._server.stop(STOP_GRACE)

    def _methods(self) -> dict[ServiceDescriptor, dict[str, Handler]]:
        gateway, settings = self._gateway, self._settings
        shown = (*_SERVICES, health.SERVICE.full_name)
        return {
            v1_grpc.SERVICE: v1_grpc.ImageGeneration(gateway, settings).methods,
            v1_jobs_grpc.SERVICE: v1_jobs_grpc.JobsService(gateway, self._jobs).methods,
            seed_grpc.SERVICE: seed_grpc.Text2ImageService(gateway, settings).methods,
            health.SERVICE: health.Health(gateway, _SERVICES).methods,
            **reflection.Reflection(shown).methods,
        }
