"""A streamed answer is one request until its last byte, and is counted by how it ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.gateway.scripted import HANG, STORY, ScriptedRunner, Step, image
from text2image.api.app import http_app
from text2image.core.errors import Unavailable
from text2image.core.lifecycle import Work
from text2image.core.messages import Completed, Progress, Queued, State
from text2image.gateway.generate import Gateway
from text2image.gateway.runners import Runners
from text2image.gateway.store import Store
from text2image.observe.metrics import GatewayMetrics

BODY = {"prompt": "a fox", "stream": True}
BEGUN: tuple[Step, ...] = (Queued(1.0), Progress(0, 1, 1))
FULL = Unavailable("full", reason=Unavailable.FULL, retry_after=1)


@dataclass
class Call:
    """One call of the application by a client that leaves when `left` is set."""

    app: Any
    left: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0
    text: str = ""

    async def make(self, method: str, path: str, body: bytes = b"") -> Call:
        asked = [{"type": "http.request", "body": body, "more_body": False}]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": [(b"content-type", b"application/json")],
            "query_string": b"",
        }

        async def receive() -> Any:
            if not asked:
                await self.left.wait()
                return {"type": "http.disconnect"}
            return asked.pop()

        async def send(message: Any) -> None:
            self.status = message.get("status", self.status)
            self.text += message.get("body", b"").decode()

        await self.app(scope, receive, send)
        return self


class Served:
    """The application on a runner that plays a script."""

    def __init__(self, folder: Path, *script: Step) -> None:
        self.registry = CollectorRegistry()
        self.metrics = GatewayMetrics(self.registry)
        self.runner = ScriptedRunner(folder / "socket", script)
        self.store = Store(folder / "pictures")

    async def __aenter__(self) -> Served:
        await self.runner.start()
        self.runners = Runners([self.runner.address], 0, self.metrics)
        self.runners.start()
        async for status in self.runners.statuses():
            if status.state is State.READY:
                break
        self.app = http_app()
        self.app.state.gateway = Gateway(self.runners, self.store, self.metrics, Work())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.runners.close()
        await self.runner.die()

    def call(self) -> Call:
        return Call(self.app)

    async def stream(self) -> Call:
        path = "/v1/images/generations"
        return await self.call().make("POST", path, json.dumps(BODY).encode())

    def counted(self) -> dict[str, float]:
        """Ended requests by their code."""
        return {
            sample.labels["code"]: sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == "text2image_requests_total"
        }

    def value(self, name: str) -> float | None:
        return self.registry.get_sample_value(name, {"transport": "openai"})


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with Served(tmp_path, Queued(1.0), image(0), Completed("and a dog")) as served:
        yield served


async def test_a_stream_that_ends_well_is_counted_and_timed_once(served: Served) -> None:
    await served.stream()
    assert served.counted() == {"OK": 1}
    assert served.value("text2image_request_seconds_count") == 1
    assert served.value("text2image_requests_in_flight") == 0


async def test_the_last_event_tells_what_of_the_prompt_was_left_out(served: Served) -> None:
    answer = await served.stream()
    kind, data = answer.text.strip().split("\n")
    assert kind == "event: image_generation.completed"
    told = json.loads(data.removeprefix("data: "))
    assert told["seed"] == 7
    assert told["message"].endswith("; the prompt was too long, left out: and a dog")


async def test_a_stream_that_fails_is_counted_by_its_error_and_says_it(tmp_path: Path) -> None:
    async with Served(tmp_path, *BEGUN, FULL) as served:
        answer = await served.stream()
        assert answer.status == 200
        assert answer.text.startswith("event: error\n")
        assert served.counted() == {"UNAVAILABLE": 1}
        assert not served.value("text2image_request_seconds_count")
        assert served.value("text2image_requests_in_flight") == 0


async def test_a_stream_that_is_refused_is_counted_once_and_has_its_own_status(
    tmp_path: Path,
) -> None:
    async with Served(tmp_path, FULL) as served:
        answer = await served.stream()
        assert answer.status == 503
        assert served.counted() == {"UNAVAILABLE": 1}


async def test_a_stream_is_in_flight_until_its_reader_leaves(tmp_path: Path) -> None:
    async with Served(tmp_path, *BEGUN, HANG) as served:
        call = served.call()
        path = "/v1/images/generations"
        reading = asyncio.create_task(call.make("POST", path, json.dumps(BODY).encode()))
        await eventually(lambda: call.status == 200)
        assert served.value("text2image_requests_in_flight") == 1
        assert served.counted() == {}
        call.left.set()
        await reading
        await eventually(lambda: served.counted() == {"CANCELLED": 1})
        assert served.value("text2image_requests_in_flight") == 0


async def test_a_stream_that_nobody_reads_is_counted_too(tmp_path: Path) -> None:
    async with Served(tmp_path, *STORY) as served:
        call = served.call()
        call.left.set()
        await call.make("POST", "/v1/images/generations", json.dumps(BODY).encode())
        await eventually(lambda: sum(served.counted().values()) == 1)
        assert served.value("text2image_requests_in_flight") == 0


async def test_asking_for_the_models_is_no_generation(served: Served) -> None:
    answer = await served.call().make("GET", "/v1/models")
    assert json.loads(answer.text)["data"][0]["id"] == "embedded"
    assert served.counted() == {}
