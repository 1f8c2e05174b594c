"""Generic clients find what is served: new ones ask by v1 of the reflection, older ones by v1alpha."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2

from tests.unit.api.test_grpc_server import Watched, serving

VERSIONS = ("v1", "v1alpha")
SERVED = {
    "Text2ImageService",
    "grpc.health.v1.Health",
    "text2image.v1.ImageGeneration",
    "text2image.v1.Jobs",
    *(f"grpc.reflection.{version}.ServerReflection" for version in VERSIONS),
}


async def buf_curl(port: int, version: str, *words: str) -> list[str]:
    """The lines of a client that others wrote, which fails unless it gets what it asks for."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("buf"),
        *("curl", "--protocol", "grpc", "--http2-prior-knowledge"),
        *("--reflect-protocol", f"grpc-{version}"),
        *words,
        f"http://127.0.0.1:{port}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    told, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    return told.decode().split()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_generic_client_lists_services_and_methods(tmp_path: Path, version: str) -> None:
    async with serving(Watched(), tmp_path) as port:
        assert set(await buf_curl(port, version, "--list-services")) == SERVED
        methods = await buf_curl(port, version, "--list-methods")
    assert "text2image.v1.ImageGeneration/Generate" in methods
    assert "text2image.v1.Jobs/UploadJob" in methods
    assert "Text2ImageService/GenerateImage" in methods


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_version_describes_itself(tmp_path: Path, version: str) -> None:
    service = f"grpc.reflection.{version}.ServerReflection"
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
    async with (
        serving(Watched(), tmp_path) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call = channel.stream_stream(
            f"/{service}/ServerReflectionInfo",
            request_serializer=lambda message: message.SerializeToString(),
            # Both versions are the same on the wire.
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        answers = [answer async for answer in call(iter([request]))]
    (file,) = (
        FileDescriptorProto.FromString(each)
        for each in answers[0].file_descriptor_response.file_descriptor_proto
    )
    assert file.package == f"grpc.reflection.{version}"
    types = {method.input_type for method in file.service[0].method}
    assert types == {f".grpc.reflection.{version}.ServerReflectionRequest"}
    assert answers[0].original_request == request


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_does_not_parse_is_the_clients_fault(tmp_path: Path, version: str) -> None:
    async with (
        serving(Watched(), tmp_path) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in call(iter([b"\xff"])):
                pass
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
