"""Server reflection, so that generic clients need no proto files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from text2image.net.rpc import Context, Handler, abort, checked

SERVICE = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]


class Reflection:
    """The library's servicer behind our parsing, which takes what does not parse for the client's fault."""

    def __init__(self, services: tuple[str, ...]) -> None:
        self._servicer = ReflectionServicer((*services, reflection.SERVICE_NAME))

    @property
    def methods(self) -> dict[str, Handler]:
        return {"ServerReflectionInfo": self.server_reflection_info}

    async def server_reflection_info(
        self, requests: AsyncIterator[Any], context: Context
    ) -> AsyncIterator[Any]:
        async def parsed() -> AsyncIterator[Any]:
            async for request in requests:
                yield checked(request)

        try:
            async for answer in self._servicer.ServerReflectionInfo(parsed(), context):
                yield answer
        except Exception as error:
            await abort(context, error)
