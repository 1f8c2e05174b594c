"""Requests on connections of their own, as many clients would send them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
from PIL.Image import Image

from tests.e2e.harness import Server
from tests.e2e.test_pictures import image_of
from text2image.core.messages import Status

# Long enough for a fault in the middle.
LONG = 30
# As long as a picture may take: it outlasts the arrival of many others.
LONGEST = 150
PATIENCE = 120.0


def post(
    server: Server, seed: int, text: str = "a red fox", timeout: float = PATIENCE, **fields: Any
) -> httpx.Response:
    """The answer to `POST /generate`; the server is told the time limit, and given a little more."""
    return httpx.post(
        f"{server.url}/generate",
        json={"text": text, "seed": seed, **fields},
        headers={"X-Request-Timeout": f"{timeout:g}"},
        timeout=timeout + 30,
    )


def pictures_of(answer: httpx.Response) -> list[Image]:
    assert answer.status_code == 200, answer.text
    return [image_of(picture["image_base64"]) for picture in answer.json()["images"]]


def draw(server: Server, seed: int, **fields: Any) -> Image:
    """One picture over HTTP."""
    return pictures_of(post(server, seed, **fields))[0]


def draw_by_grpc(
    server: Server, seed: int, text: str = "a red fox", timeout: float = PATIENCE, **fields: Any
) -> Image:
    """One picture over gRPC."""
    with server.client() as client:
        return image_of(client.generate(text, seed=seed, timeout=timeout, **fields)[0].png)


def ask_both(
    server: Server, pool: ThreadPoolExecutor, seeds: range, **fields: Any
) -> list[Future[Image]]:
    """Asks for a picture of each seed, over HTTP and gRPC in turn."""
    ways = (draw, draw_by_grpc)
    return [pool.submit(ways[seed % 2], server, seed, **fields) for seed in seeds]


def is_idle(status: Status) -> bool:
    """Whether every admitted request has ended."""
    counters = status.counters
    ended = counters.completed + counters.failed + counters.cancelled + counters.dropped
    return not status.active and counters.admitted == ended
