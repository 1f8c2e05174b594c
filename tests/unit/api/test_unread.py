"""A full server refuses before it reads: nothing is parsed or begun for what could only be refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from starlette.datastructures import Headers, State
from starlette.types import Message, Receive, Scope, Send

from tests.unit.gateway.asking import asking
from tests.unit.gateway.scripted import ScriptedRunner
from text2image.api import unread
from text2image.api.unread import RefuseUnread
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


class ByAddress(Authenticator):
    """Callers by their address, and none without one."""

    def caller(self, credentials: Credentials, scope: object = None) -> Caller:
        if not credentials.address:
            raise Unauthenticated("show a key")
        return Caller(credentials.address, messages.Share(credentials.address))


class Service:
    """The layer in front of an application that says what has reached it."""

    def __init__(self, gateway: Gateway, registry: CollectorRegistry) -> None:
        self.gateway = gateway
        self.registry = registry
        self.entered = asyncio.Event()
        self.reached: list[bytes] = []
        state = State()
        state.gateway = gateway
        self._layer = RefuseUnread(self._app, state)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                break
        self.reached.append(body)

    async def post(
        self,
        path: str = "/generate",
        *,
        chunks: tuple[bytes, ...] = (BODY,),
        client: str | None = "alice",
        **headers: str,
    ) -> list[Message]:
        """The answer's messages, none if the request went through."""
        sent: list[Message] = []
        incoming = [
            {"type": "http.request", "body": chunk, "more_body": chunk is not chunks[-1]}
            for chunk in chunks
        ]

        async def receive() -> Message:
            if not incoming:
                await asyncio.Event().wait()
            return incoming.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        fields = {"x-request-timeout": f"{PATIENCE:g}", **headers}
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "client": (client, 1) if client else None,
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        }
        await self._layer(scope, receive, send)
        return sent

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
    gateway = Gateway(runners, None, metrics, Work(), authenticator=ByAddress(metrics))
    yield Service(gateway, registry)
    await runners.close()
    await runner.die()


def told(answer: list[Message]) -> tuple[int, Headers, dict[str, object]]:
    start, body = answer
    return start["status"], Headers(raw=start["headers"]), json.loads(body["body"])


async def test_whom_a_runner_refuses_whatever_they_ask_is_refused_unread(service: Service) -> None:
    await service.refused()
    for path in ("/generate", "/v1/images/generations"):
        status, headers, body = told(await service.post(path, chunks=(b"not even JSON",)))
        assert status == 503
        assert headers["Retry-After"] == "3"
        assert headers["X-Trace-Id"]
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
        {"chunks": (BODY[:5], BODY[5:])},
        {"origin": "http://elsewhere"},
        {"expect": "100-continue"},
        {"path": "/v1/models"},
    ],
    ids=["caller", "patience", "seed", "pieces", "page", "asks first", "path"],
)
async def test_whatever_might_be_answered_goes_through_whole(
    service: Service, post: dict[str, object]
) -> None:
    await service.refused()
    assert not await service.post(**post)  # type: ignore[arg-type]
    assert service.reached == [b"".join(post.get("chunks", (BODY,)))]  # type: ignore[arg-type]


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
    status, headers, _answer = told(await service.post(path, chunks=(body,), **JSON))
    assert (status, headers["Retry-After"]) == (503, "3")
    assert not service.reached


@pytest.mark.parametrize("service", [False], indirect=True)
@pytest.mark.parametrize(
    "body",
    [b'{"text": "a fox"}', b'{"text": "", "n": 2}', b'{"n": 2', b'{"text": "a fox", "n": "2"}'],
    ids=["another", "invalid", "no JSON", "a wrong type"],
)
async def test_a_refusal_for_what_was_asked_says_nothing_of_other_requests(
    service: Service, body: bytes
) -> None:
    await service.refused()
    assert not await service.post(chunks=(body,), **JSON)
    assert service.reached == [body]


async def test_a_body_that_does_not_come_is_not_waited_for_here(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "PROMPTLY", 0.01)
    await service.refused()
    posting = asyncio.create_task(service.post(chunks=()))
    await asyncio.wait_for(service.entered.wait(), 30)
    posting.cancel()


async def test_a_server_with_room_reads_everything(service: Service) -> None:
    assert not await service.post()
    assert service.reached == [BODY]


async def test_who_may_not_is_told_so_at_once_by_a_full_server(service: Service) -> None:
    await service.refused()
    status, headers, _ = told(await service.post(client=None))
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_a_time_limit_that_is_none_is_said_at_once(service: Service) -> None:
    await service.refused()
    status, _, body = told(await service.post(**{"x-request-timeout": "soon"}))
    assert (status, body["reason"]) == (400, "INVALID_REQUEST")


async def test_a_draining_server_reads_nothing(service: Service) -> None:
    await service.gateway.drain(0)
    status, _, body = told(await service.post())
    assert (status, body["reason"]) == (503, Unavailable.DRAINING)
