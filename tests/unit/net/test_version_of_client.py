"""Clients work with servers of other versions, and errors of later versions are what their codes say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tests.samples import MODEL
from tests.unit.net.versions import (
    LATER_SAMPLER,
    NEWER,
    OLDER,
    VERSIONS,
    Peer,
    Version,
    draw,
    gateway_of,
)
from text2image.client import AsyncClient, Client
from text2image.core import errors
from text2image.core.messages import (
    Completed,
    ModelInfo,
    Picture,
    Progress,
    Queued,
    Sampler,
)
from text2image.net import rpc_errors, wire
from text2image.v1 import image_generation_pb2 as pb


def later_status(code: str, reason: str, *details: Any) -> grpc.Status:
    """A refusal for a reason that only later versions give, with details of kinds that only they know."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain=rpc_errors.ERROR_DOMAIN)
    info.metadata.update({"lasts": "a while", "more": "7"})
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message="so it is")
    for detail in (info, *details):
        status.details.add().Pack(detail)
    unknown = any_pb2.Any(type_url="type.googleapis.com/google.rpc.Later", value=b"\xff\xff")
    status.details.add().CopyFrom(unknown)
    return rpc_status.to_status(status)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", errors.InvalidRequest),
        ("NOT_FOUND", errors.ModelNotFound),
        ("FAILED_PRECONDITION", errors.InvalidRequest),
        ("UNAUTHENTICATED", errors.Unauthenticated),
        ("PERMISSION_DENIED", errors.PermissionDenied),
        ("RESOURCE_EXHAUSTED", errors.QuotaExceeded),
        ("DEADLINE_EXCEEDED", errors.DeadlineExceeded),
        ("CANCELLED", errors.Cancelled),
        ("INTERNAL", errors.Internal),
        ("UNAVAILABLE", errors.Unavailable),
        ("ABORTED", errors.Unavailable),
    ],
)
async def test_an_error_of_a_later_version_is_what_its_code_says(
    tmp_path: Path, code: str, kind: type[errors.Text2ImageError]
) -> None:
    peer = Peer(NEWER, tmp_path / "0")
    peer.failure = later_status(code, "SOMETHING_NEW")
    async with peer.serving(), gateway_of(peer) as runners, AsyncClient(peer.address) as client:
        for ask in (partial(draw, runners), partial(client.generate, "a fox")):
            with pytest.raises(kind) as raised:
                await cast("Callable[[], Awaitable[object]]", ask)()
            assert type(raised.value) is kind
            assert raised.value.reason == "SOMETHING_NEW"
            assert kind is errors.Internal or "so it is" in raised.value.message


async def test_details_that_contradict_the_status_are_taken_for_a_strangers(
    tmp_path: Path,
) -> None:
    peer = Peer(NEWER, tmp_path / "0")
    peer.failure = later_status("NOT_FOUND", "X")._replace(code=grpc.StatusCode.INTERNAL)
    async with peer.serving(), AsyncClient(peer.address) as client:
        with pytest.raises(errors.Text2ImageError):
            await client.generate("a fox")


@VERSIONS
async def test_a_client_draws_at_a_gateway_of_another_version(
    tmp_path: Path, version: Version
) -> None:
    later = Sampler.named(LATER_SAMPLER)
    peer = Peer(version, tmp_path / "0", model=replace(MODEL, sampler=later, samplers=(later,)))
    peer.image = pb.Image(index=0, seed=7, width=1, height=1, png=b"PNG", path="there")
    async with peer.serving(), AsyncClient(peer.address) as client:
        events = [event async for event in client.stream("a fox", seed=7)]
        assert [type(event) for event in events] == [Queued, Progress, Picture, Completed]
        model = wire.model_from(await client._stub.GetModel(pb.GetModelRequest()))
        assert [model.sampler.value, *model.samplers] == [LATER_SAMPLER] * 2


@pytest.mark.parametrize("version", [OLDER], ids=["older"])
async def test_a_client_of_a_server_without_a_catalogue_knows_its_one_model(
    tmp_path: Path, version: Version
) -> None:
    def models() -> list[ModelInfo]:
        with Client(peer.address) as client:
            return client.models()

    async with Peer(version, tmp_path / "0").serving() as peer:
        assert [model.id for model in await asyncio.to_thread(models)] == [MODEL.id]
