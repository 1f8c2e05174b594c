"""BentoML's HTTP server as we patch it."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from text2image.api.bento import OneLine, Timeout, bound_sending

HTTP = {"type": "http"}


class Answer:
    """What a client got."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    async def receive(self) -> Message:
        raise AssertionError("nobody asks for more")

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


async def quick(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def long_answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await asyncio.sleep(0.1)
    await send({"type": "http.response.body", "body": b"all of it"})


async def test_an_answer_that_does_not_begin_in_time_is_504() -> None:
    answer = Answer()
    await Timeout(slow, 0.01)(HTTP, answer.receive, answer.send)
    assert answer.status == 504


async def test_an_answer_that_has_begun_may_take_its_time() -> None:
    answer = Answer()
    await Timeout(long_answer, 0.01)(HTTP, answer.receive, answer.send)
    assert answer.status == 200
    assert answer.messages[-1]["body"] == b"all of it"


async def test_nothing_of_a_request_outlives_it() -> None:
    class Thing:
        """Something that a request has to do with."""

    current: ContextVar[Thing] = ContextVar("current")
    living: weakref.WeakSet[Thing] = weakref.WeakSet()

    async def request() -> None:
        thing = Thing()
        current.set(thing)
        living.add(thing)
        answer = Answer()
        await Timeout(quick, 3600)(HTTP, answer.receive, answer.send)

    for _ in range(1000):
        await asyncio.create_task(request())
    gc.collect()
    # The loop clears away what was cancelled now and then, not at once.
    assert len(living) < 250


class Endless:
    """An application whose answer never ends; tells when its client has gone."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        leaving = asyncio.create_task(self._gone(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not leaving.done():
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})

    async def _gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


@asynccontextmanager
async def served(app: Endless, listener: socket.socket) -> AsyncIterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = server.force_exit = True
        await serving


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux alone has it")
async def test_a_client_that_takes_nothing_of_its_answer_is_cut_off() -> None:
    app = Endless()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        bound_sending(listener, 0.2)
        async with served(app, listener):
            client.connect(listener.getsockname())
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await asyncio.wait_for(app.left.wait(), 30)


@pytest.mark.parametrize(
    ("path", "shown"),
    [("/a%20b/é", "/a%20b/é"), ("/a\nFORGED\x1b[2J\u2028", "/a\\nFORGED\\x1b[2J\\u2028")],
)
def test_a_line_of_the_access_log_is_one_line(path: str, shown: str) -> None:
    record = logging.LogRecord("bentoml.access", logging.INFO, "", 0, "path=%s", (path,), None)
    assert OneLine().filter(record)
    assert record.getMessage() == f"path={shown}"
