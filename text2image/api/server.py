"""A gateway process put together: the request path, and gRPC beside the HTTP that BentoML serves."""

from __future__ import annotations

from text2image.api.grpc_server import GrpcServer
from text2image.gateway.generate import Gateway
from text2image.gateway.runners import Runners
from text2image.gateway.store import Store
from text2image.hardware import runner_count
from text2image.lifecycle import Work
from text2image.settings import Settings
from text2image.sockets import private_folder
from text2image.telemetry import GatewayMetrics


class GatewayServer:
    """Make it in the event loop of the process that serves."""

    def __init__(self, settings: Settings) -> None:
        metrics = GatewayMetrics()
        self._settings = settings
        self._runners = Runners(
            [settings.socket_of(index) for index in range(runner_count(settings))],
            settings.runner_retries,
            metrics,
        )
        store = Store(settings.output_dir) if settings.save_images else None
        self.gateway = Gateway(
            self._runners, store, metrics, Work(), log_prompts=settings.log_prompts
        )
        self._grpc = GrpcServer(self.gateway, settings)

    async def start(self) -> None:
        """Connects to the runners and listens for gRPC.

        Raises:
            RuntimeError: the gRPC port is taken.
            PermissionError: somebody else could listen in a runner's place.
        """
        private_folder(self._settings.socket_of(0).parent)
        self._runners.start()
        await self._grpc.start()

    async def drain(self) -> None:
        """Refuses new work on every transport and finishes the admitted, as long as the settings allow."""
        await self.gateway.drain(self._settings.drain_timeout)

    async def stop(self) -> None:
        """Ends all calls and closes all connections."""
        await self._runners.close()
        await self._grpc.stop()
