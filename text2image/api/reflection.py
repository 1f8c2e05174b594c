"""Server reflection, so that generic clients need no proto files: v1, and v1alpha, which older ones ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from text2image.net.rpc import Context, Handler, abort, checked

_ALPHA, _V1 = "v1alpha", "v1"


def _v1_file() -> FileDescriptor:
    """v1 is v1alpha under another name, by its own words; the library that brings v1alpha lacks it."""
    alpha = reflection_pb2.DESCRIPTOR
    file = descriptor_pb2.FileDescriptorProto.FromString(alpha.serialized_pb)
    file.name = alpha.name.replace(_ALPHA, _V1)
    file.package = alpha.package.replace(_ALPHA, _V1)
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(alpha.package, file.package)
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(alpha.package, file.package)
        method.output_type = method.output_type.replace(alpha.package, file.package)
    pool = descriptor_pool.Default()
    try:
        known: FileDescriptor = pool.FindFileByName(file.name)
    except KeyError:
        known = pool.AddSerializedFile(file.SerializeToString())
    return known


_SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    file.services_by_name["ServerReflection"] for file in (_v1_file(), reflection_pb2.DESCRIPTOR)
)


class Reflection:
    """The library's servicer behind our parsing, which takes what does not parse for the client's fault."""

    def __init__(self, services: tuple[str, ...]) -> None:
        names = (service.full_name for service in _SERVICES)
        self._servicer = ReflectionServicer((*services, *names))

    @property
    def methods(self) -> dict[ServiceDescriptor, dict[str, Handler]]:
        """By service."""
        return {service: {"ServerReflectionInfo": self._handler(service)} for service in _SERVICES}

    def _handler(self, service: ServiceDescriptor) -> Handler:
        answer_type = GetMessageClass(service.methods_by_name["ServerReflectionInfo"].output_type)

        async def server_reflection_info(
            requests: AsyncIterator[Any], context: Context
        ) -> AsyncIterator[Message]:
            async def parsed() -> AsyncIterator[Any]:
                async for request in requests:
                    sent = checked(request).SerializeToString()
                    yield reflection_pb2.ServerReflectionRequest.FromString(sent)

            try:
                async for answer in self._servicer.ServerReflectionInfo(parsed(), context):
                    yield answer_type.FromString(answer.SerializeToString())
            except Exception as error:
                await abort(context, error)

        return server_reflection_info
