"""The client shows its key with every call and to nobody else, and takes from the environment what is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.samples import MODEL
from text2image.client import AsyncClient, Client
from text2image.net import wire
from text2image.v1 import image_generation_pb2 as pb
from text2image.v1.image_generation_pb2_grpc import (
    ImageGenerationServicer,
    add_ImageGenerationServicer_to_server,
)

KEY = "t2i_0123456789abcdef"


class Doorkeeper(ImageGenerationServicer):  # type: ignore[misc]
    """Answers with nothing, and remembers what each call showed."""

    def __init__(self) -> None:
        self.shown: list[str | None] = []

    def _see(self, context: grpc.ServicerContext) -> None:
        self.shown.append(dict(context.invocation_metadata()).get("authorization"))  # type: ignore[arg-type]

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._see(context)
        yield pb.GenerateResponse(completed=pb.Completed())

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._see(context)
        return wire.model_to(MODEL)

    def WatchStatus(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._see(context)
        yield pb.WatchStatusResponse(state=pb.STATE_READY)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("API_KEY", "TLS_CA", "TLS_CLIENT_CERT", "TLS_CLIENT_KEY"):
        monkeypatch.delenv(f"T2I_{variable}", raising=False)


@pytest.fixture
def doorkeeper() -> Doorkeeper:
    return Doorkeeper()


@pytest.fixture
def address(doorkeeper: Doorkeeper) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    add_ImageGenerationServicer_to_server(doorkeeper, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def call_all(address: str, **options: Any) -> None:
    with Client(address, **options) as client:
        client.generate("a cat")
        client.model()
        client.status()


async def test_the_key_is_shown_with_every_call(address: str, doorkeeper: Doorkeeper) -> None:
    call_all(address, api_key=KEY)
    async with AsyncClient(address, api_key=KEY) as client:
        await client.generate("a cat")
    assert doorkeeper.shown == [f"Bearer {KEY}"] * 4


def test_a_client_that_was_given_no_key_shows_that_of_the_environment(
    address: str, doorkeeper: Doorkeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_all(address)
    monkeypatch.setenv("T2I_API_KEY", KEY)
    call_all(address)
    call_all(address, api_key="")
    assert doorkeeper.shown == [*[None] * 3, *[f"Bearer {KEY}"] * 3, *[None] * 3]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_no_key_stands_in_a_representation(kind: Callable[..., object]) -> None:
    assert KEY not in repr(kind(api_key=KEY))


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY} {KEY}", f"{KEY}é", f"{KEY}\x00"])
def test_what_is_no_key_is_refused_without_saying_it(key: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII") as refused:
        Client(api_key=key)
    assert KEY not in str(refused.value)


def test_what_is_no_certificate_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pem"):
        Client(ca=tmp_path / "nowhere.pem")
    (tmp_path / "ca.der").write_bytes(b"\x30\x82")
    with pytest.raises(ValueError, match=r"ca\.der"):
        Client(ca=tmp_path / "ca.der")
    with pytest.raises(ValueError, match="PEM"):
        Client(ca=b"\x30\x82")
    with pytest.raises(ValueError, match=r"ca\.der"):
        Client(ca=True, certificate=(tmp_path / "ca.der", tmp_path / "ca.der"))


def test_a_certificate_is_never_named_for_a_connection_that_is_plain(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = (tmp_path / "client.pem", tmp_path / "client.key")
    for ca in (None, False, ""):
        with pytest.raises(ValueError, match="T2I_TLS_CA"):
            Client(ca=ca, certificate=shown)
    monkeypatch.setenv("T2I_TLS_CLIENT_CERT", "client.pem")
    monkeypatch.setenv("T2I_TLS_CLIENT_KEY", "client.key")
    with pytest.raises(ValueError, match="T2I_TLS_CA"):
        Client()
    Client(ca=False).close()
