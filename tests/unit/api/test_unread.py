"""A full server refuses before it reads: nothing is parsed or begun for what could only be refused."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers, State
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tests.unit.gateway.asking import asking
from tests.unit.gateway.scripted import ScriptedRunner
from text2image.api import protocol
from text2image.api.protocol import refusing
from text2image.api.unread import Unread
from text2image.core import messages
from text2image.core.errors import Unauthenticated, Unavailable
from text2image.core.lifecycle import Work
from text2image.gateway.auth import Authenticator, Caller, Credentials
from text2image.gateway.generate import Gateway
from text2image.gateway.runners import Runners
from text2image.observe.metrics import GatewayMetrics

PATIENCE = 30.0
BODY = b'{"text": "a fox"}'
JSON = {"content-type": "application/json"}


def refusal(*, anything: bool) -> Unavailable:
    return Unavailable(
        "full", reason=Unavailable.FULL, retry_after=3.0, lasts=60.0, anything=anything
    )


class ByKey(Authenticator):
    """Callers by what they show, and none without it."""

    def caller(self, credentials: Credentials, scope: object = None) -> Caller:
        if not credentials.api_key:
            raise Unauthenticated("show a key")
        return Caller(credentials.api_key, messages.Share(credentials.api_key))


class Answer(NamedTuple):
    status: int
    headers: Headers
    body: dict[str, object]


class Service:
    """A server of uvicorn's in front of an application that says what has reached it, and a connection to it."""

    def __init__(self, gateway: Gateway, registry: CollectorRegistry) -> None:
        self.gateway = gateway
        self.registry = registry
        self.entered = asyncio.Event()
        self.reached: list[bytes] = []
        state = State()
        state.gateway = gateway
        protocol = refusing(Unread(state))
        config = uvicorn.Config(self._app, http=protocol, lifespan="off", interface="asgi3")
        self._server = uvicorn.Server(config)

    async def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self._serving = asyncio.create_task(self._server.serve([listener]))
        self._reader, self._writer = await asyncio.open_connection(*listener.getsockname())

    async def close(self) -> None:
        self._writer.close()
        self._server.should_exit = True
        await self._serving

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                break
        self.reached.append(body)
        await Response("{}", 200)(scope, receive, send)

    async def send(
        self,
        path: str = "/generate",
        *,
        chunks: tuple[bytes, ...] = (BODY,),
        client: str | None = "alice",
        version: str = "1.1",
        **headers: str,
    ) -> None:
        fields = {"x-request-timeout": f"{PATIENCE:g}", **headers}
        fields["x-api-key"] = client or ""
        fields.setdefault("content-length", str(sum(map(len, chunks))))
        lines = (f"{name}: {value}\r\n" for name, value in fields.items() if value)
        head = f"POST {path} HTTP/{version}\r\n{''.join(lines)}\r\n"
        self._writer.write(head.encode() + chunks[0])
        for chunk in chunks[1:]:
            await asyncio.wait_for(self.entered.wait(), 30)
            self._writer.write(chunk)

    async def answer(self) -> Answer:
        head = await self._reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100"):
            head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().strip().split("\r\n")
        headers = Headers(dict(line.split(": ", 1) for line in lines))
        body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(int(first.split()[1]), headers, json.loads(body))

    async def post(self, path: str = "/generate", **options: Any) -> Answer:
        await self.send(path, **options)
        return await self.answer()

    async def line(self) -> bytes:
        return await self._reader.readline()

    async def is_cut(self) -> bool:
        return await self._reader.read(1) == b""

    async def refused(self, name: str = "alice", *, anything: bool = True) -> None:
        """Has the runner refuse a caller once."""
        context = asking(caller=Caller(name, messages.Share(name)), seed=None)
        context.timeout = PATIENCE
        with pytest.raises(Unavailable):
            await self.gateway.draw(context)


@pytest.fixture(params=[True], ids=["anything"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    runner = ScriptedRunner(tmp_path / "0", [refusal(anything=request.param)])
    await runner.start()
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    runners = Runners([runner.address], 0, metrics)
    runners.start()
    async with asyncio.timeout(30):
        async for _ in runners.statuses():
            if runners.is_ready:
                break
    gateway = Gateway(runners, None, metrics, Work(), authenticator=ByKey(metrics))
    service = Service(gateway, registry)
    await service.start()
    yield service
    await service.close()
    await runners.close()
    await runner.die()


async def test_whom_a_runner_refuses_whatever_they_ask_is_refused_unread(service: Service) -> None:
    await service.refused()
    for path in ("/generate", "/v1/images/generations"):
        status, headers, body = await service.post(path, chunks=(b"not even JSON",))
        assert status == 503
        assert headers["Retry-After"] == "3"
        assert headers["X-Trace-Id"] == headers["X-Request-Id"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "full" in str(body)
    assert not service.reached
    for transport in ("rest", "openai"):
        labels = {"transport": transport, "code": "UNAVAILABLE"}
        assert service.registry.get_sample_value("text2image_requests_total", labels) == 1


@pytest.mark.parametrize(
    "post",
    [
        {"client": "bob"},
        {"x-request-timeout": "60"},
        {"chunks": (b'{"text": "a fox", "seed": 7}',)},
        {"chunks": (b'{"text": "a fox", "image": "iVBORw0"}',)},
        {"chunks": (BODY[:5], BODY[5:])},
        {"origin": "http://elsewhere"},
        {"expect": "100-continue", "chunks": (b"", BODY)},
        {"path": "/v1/models"},
        {"path": "/generate?x=1"},
        {
            "transfer-encoding": "chunked",
            "content-length": "",
            "chunks": (b"3\r\nfox\r\n0\r\n\r\n",),
        },
    ],
    ids=[
        "caller",
        "patience",
        "seed",
        "picture",
        "pieces",
        "page",
        "asks first",
        "path",
        "query",
        "chunked",
    ],
)
async def test_whatever_might_be_answered_goes_through_whole(
    service: Service, post: dict[str, Any]
) -> None:
    await service.refused()
    assert (await service.post(**post)).status == 200
    sent = b"fox" if "transfer-encoding" in post else b"".join(post.get("chunks", (BODY,)))
    assert service.reached == [sent]


ALIKE = [
    ("/generate", b'{"text": "a bear", "n": 2}'),
    ("/v1/images/generations", b'{"prompt": "a bear", "n": 2}'),
]


@pytest.mark.parametrize("service", [False], indirect=True)
@pytest.mark.parametrize(("path", "body"), ALIKE)
async def test_the_like_of_what_was_refused_is_refused_before_anything_begins(
    service: Service, path: str, body: bytes
) -> None:
    await service.refused()
    status, headers, _ = await service.post(path, chunks=(body,), **JSON)
    assert (status, headers["Retry-After"]) == (503, "3")
    assert not service.reached


@pytest.mark.parametrize("service", [False], indirect=True)
@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "a fox"}',
        b'{"text": "", "n": 2}',
        b'{"n": 2',
        b'{"text": "a fox", "n": "2"}',
        b'{"text": "%s", "n": 2}' % (b"x" * 4001),
        b'{"text": "a fox", "n": 2, "colour": "red"}',
    ],
    ids=["another", "invalid", "no JSON", "a wrong type", "too long", "unknown field"],
)
async def test_a_refusal_for_what_was_asked_says_nothing_of_other_requests(
    service: Service, body: bytes
) -> None:
    await service.refused()
    like = b'{"text": "a bear", "n": 2}'
    assert (await service.post(chunks=(like,), **JSON)).status == 503
    assert (await service.post(chunks=(body,), **JSON)).status == 200
    assert service.reached == [body]


async def test_a_body_that_does_not_come_is_not_waited_for_here(service: Service) -> None:
    await service.refused()
    await service.send(chunks=(b"",), **{"content-length": "17"})
    await asyncio.wait_for(service.entered.wait(), 30)


async def test_what_follows_a_refusal_on_its_connection_is_answered_in_order(
    service: Service,
) -> None:
    await service.refused()
    for client in ("alice", "alice", "bob", "alice"):
        await service.send(client=client)
    assert [(await service.answer()).status for _ in range(4)] == [503, 503, 200, 200]


@pytest.mark.parametrize(
    "last", [{"version": "1.0"}, {"connection": "close"}], ids=["1.0", "close"]
)
async def test_a_connection_that_is_to_end_ends_after_a_refusal(
    service: Service, last: dict[str, Any]
) -> None:
    await service.refused()
    answer = await service.post(**last)
    assert (answer.status, answer.headers["connection"]) == (503, "close")
    assert await service.is_cut()


async def test_what_is_no_http_is_told_so_after_a_head_that_might_be_refused(
    service: Service,
) -> None:
    await service.refused()
    headers = {"transfer-encoding": "", "content-length": "2"}
    await service.send(chunks=(b"{}\0\0 no request\r\n\r\n",), **headers)
    assert (await service.answer()).status == 503
    assert b"400" in await service.line()


async def test_a_fault_of_ours_is_no_fault_of_the_clients(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.refused()
    monkeypatch.setattr(Unread, "refusal", lambda *_: 1 / 0)
    assert (await service.post()).status == 200


async def test_a_server_with_room_reads_everything(service: Service) -> None:
    assert (await service.post()).status == 200
    assert service.reached == [BODY]


async def test_a_crowd_that_is_refused_gathers_and_a_lone_client_does_not_wait(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(protocol, "sleep", pauses.append)
    monkeypatch.setattr(protocol, "GATHER", 30.0)
    await service.refused()
    await service.post()
    assert not pauses
    for client in ("alice", "bob", "alice"):
        await service.post(client=client)
    assert pauses == [30.0, 30.0]
    monkeypatch.setattr(protocol, "GATHER", 90.0)
    await service.post()
    assert len(pauses) == 2, "it would outlast the refusal"


async def test_who_may_not_is_told_so_at_once_by_a_full_server(service: Service) -> None:
    await service.refused()
    status, headers, _ = await service.post(client=None)
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_a_time_limit_that_is_none_is_said_at_once(service: Service) -> None:
    await service.refused()
    status, _, body = await service.post(**{"x-request-timeout": "soon"})
    assert (status, body["reason"]) == (400, "INVALID_REQUEST")


async def test_a_draining_server_reads_nothing(service: Service) -> None:
    await service.gateway.drain(0)
    status, _, body = await service.post()
    assert (status, body["reason"]) == (503, Unavailable.DRAINING)
