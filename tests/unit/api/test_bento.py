"""BentoML's HTTP server as we patch it."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from contextvars import ContextVar

import h11
import pytest
from starlette.types import Message, Receive, Scope, Send

from text2image.api.bento import OneLine, Timeout

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


async def test_what_uvicorn_has_refused_already_is_not_answered_again() -> None:
    sent = 0

    async def send(message: Message) -> None:
        nonlocal sent
        sent += 1
        if sent == 1:
            raise h11.LocalProtocolError("can't handle event type Response")

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await Timeout(quick, 60)(HTTP, receive, send)
    assert sent == 2


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


@pytest.mark.parametrize(
    ("path", "shown"),
    [("/a%20b/é", "/a%20b/é"), ("/a\nFORGED\x1b[2J\u2028", "/a\\nFORGED\\x1b[2J\\u2028")],
)
def test_a_line_of_the_access_log_is_one_line(path: str, shown: str) -> None:
    record = logging.LogRecord("bentoml.access", logging.INFO, "", 0, "path=%s", (path,), None)
    assert OneLine().filter(record)
    assert record.getMessage() == f"path={shown}"
