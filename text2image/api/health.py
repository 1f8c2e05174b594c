"""The standard health service, `grpc.health.v1.Health`, of the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
from grpc_health.v1 import health_pb2 as pb

from text2image.core.errors import ModelNotFound, Unavailable
from text2image.gateway.generate import Gateway
from text2image.net.rpc import Context, Handler, Malformed, abort, checked

SERVICE = pb.DESCRIPTOR.services_by_name["Health"]


class Health:
    """The servicer; the server as a whole, `""`, and each of `services` are as ready as the gateway is.

    A model is one by each of its names, and serves if it is loaded or would be for a request. Models are not listed:
    nobody shows a key here.
    """

    def __init__(self, gateway: Gateway, services: tuple[str, ...]) -> None:
        self._gateway = gateway
        self._services = ("", *services)

    @property
    def methods(self) -> dict[str, Handler]:
        return {"Check": self.check, "List": self.list, "Watch": self.watch}

    async def check(
        self, request: pb.HealthCheckRequest | Malformed, context: Context
    ) -> pb.HealthCheckResponse:
        try:
            answer = self._answer(checked(request).service)
        except Exception as error:
            await abort(context, error)
        if answer.status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no service of this name is served")
        return answer

    async def list(
        self, request: pb.HealthListRequest | Malformed, context: Context
    ) -> pb.HealthListResponse:
        try:
            checked(request)
            return pb.HealthListResponse(
                statuses={service: self._answer(service) for service in self._services}
            )
        except Exception as error:
            await abort(context, error)

    async def watch(
        self, request: pb.HealthCheckRequest | Malformed, context: Context
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """Tells the status now and after each change; a name that is not served stays unknown."""
        try:
            service = checked(request).service
            told = None
            async with aclosing(self._gateway.statuses()) as statuses:
                async for _ in statuses:
                    answer = self._answer(service)
                    if answer != told:
                        yield answer
                    told = answer
        except Exception as error:
            await abort(context, error)

    def _answer(self, service: str) -> pb.HealthCheckResponse:
        ready = self._gateway.is_ready
        if service not in self._services:
            try:
                ready = ready and self._gateway.runners.serves(service)
            except (ModelNotFound, Unavailable):
                return pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVICE_UNKNOWN)
        status = pb.HealthCheckResponse.SERVING if ready else pb.HealthCheckResponse.NOT_SERVING
        return pb.HealthCheckResponse(status=status)
