"""One picture from a server, as the drivers ask for it."""

from __future__ import annotations

import ssl
from typing import Any

import aiohttp

from loadtests.drivers import Call
from text2image.client import AsyncClient

# Sooner than servers close connections that nobody uses, lest one is used at that very moment.
KEEPALIVE_SECONDS = 3.0


def http_session(
    timeout: float, authorities: ssl.SSLContext | None = None
) -> aiohttp.ClientSession:
    """A client for any number of calls at once, each of at most so many seconds.

    Not httpx, which takes several times as long for a call, on the cores that it shares with the server.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEPALIVE_SECONDS, ssl=authorities or True
        ),
        timeout=aiohttp.ClientTimeout(total=timeout),
        raise_for_status=True,
    )


def http_call(
    session: aiohttp.ClientSession, url: str, headers: dict[str, str] | None = None, **fields: Any
) -> Call:
    """A picture over `POST /generate`; `fields`, the text among them, go into each request."""

    async def call(seed: int, steps: int) -> object:
        body = {"seed": seed, "steps": steps, **fields}
        async with session.post(f"{url}/generate", json=body, headers=headers) as answer:
            return (await answer.json())["image_base64"]

    return call


def grpc_call(client: AsyncClient, prompt: str, **fields: Any) -> Call:
    """A picture over gRPC v1; `fields` go into each request."""

    async def call(seed: int, steps: int) -> object:
        pictures = await client.generate(prompt, seed=seed, steps=steps, **fields)
        return pictures[0].png

    return call
