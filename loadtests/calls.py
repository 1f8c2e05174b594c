"""One picture from a server, as the drivers ask for it."""

from __future__ import annotations

from typing import Any

import httpx

from loadtests.drivers import Call
from text2image.client import AsyncClient


def http_call(
    client: httpx.AsyncClient, url: str, headers: dict[str, str] | None = None, **fields: Any
) -> Call:
    """A picture over `POST /generate`; `fields`, the text among them, go into each request."""

    async def call(seed: int, steps: int) -> object:
        body = {"seed": seed, "steps": steps, **fields}
        answer = await client.post(f"{url}/generate", json=body, headers=headers)
        return answer.raise_for_status().json()["image_base64"]

    return call


def grpc_call(client: AsyncClient, prompt: str, **fields: Any) -> Call:
    """A picture over gRPC v1; `fields` go into each request."""

    async def call(seed: int, steps: int) -> object:
        pictures = await client.generate(prompt, seed=seed, steps=steps, **fields)
        return pictures[0].png

    return call
