"""How pictures are answered in OpenAI's dialect: whole, as URLs, or as events while they are drawn."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request as HttpRequest

from text2image.core.addresses import address_of
from text2image.core.errors import Text2ImageError
from text2image.core.messages import (
    ClientEvent,
    Completed,
    Picture,
    Pixels,
    Progress,
    Quality,
    Request,
)
from text2image.core.settings import get_settings
from text2image.gateway import encoding
from text2image.gateway.context import RequestContext
from text2image.gateway.generate import Drawing, Gateway

# Where pictures with URLs are served, less their names.
FILES = "/v1/images/files/"
# What OpenAI counts as one token: about so many letters of English, and here pixels of a side of a picture.
BYTES_PER_TOKEN = 4
TOKEN_SIDE = 32
# In its words, of which strict clients know no others.
QUALITIES = {Quality.EXACT: "high", Quality.FAST: "low"}
_NOT_HOSTED = "; it could be kept nowhere, so it comes whole in place of its URL"


async def images(
    http: HttpRequest, gateway: Gateway, context: RequestContext, drawing: Drawing, *, urls: bool
) -> dict[str, Any]:
    """The body of an `ImagesResponse`, in which bytes stand for their base64."""
    data: list[dict[str, Any]] = []
    message = drawing.message
    for picture in drawing.pictures:
        url = await _url_of(http, gateway, context, picture) if urls else None
        if urls and not url and _NOT_HOSTED not in message:
            message += _NOT_HOSTED
        data.append({"url": url} if url else {"b64_json": picture.file})
        data[-1]["seed"] = picture.seed
    return {
        "created": int(time.time()),
        "data": data,
        **told(context),
        "usage": usage_of(context.request),
        "message": message,
        "cached": drawing.cached,
    }


async def _url_of(
    http: HttpRequest, gateway: Gateway, context: RequestContext, picture: Picture
) -> str | None:
    if gateway.urls is None:
        return None
    base = reached_at(http) + FILES
    return await gateway.urls.url_of(picture.file, context.encoding.format, picture.path, base)


def reached_at(http: HttpRequest) -> str:
    """Where the client of a request reaches this server, without a slash behind it."""
    public = get_settings().public_url
    if public:
        return public.rstrip("/")
    host, port = http.scope.get("server") or ("localhost", None)
    own = address_of(host, port) if port else host
    return f"{http.scope.get('scheme', 'http')}://{http.headers.get('Host') or own}"


async def events(
    gateway: Gateway,
    context: RequestContext,
    stream: AsyncGenerator[ClientEvent, None],
    partial_images: int,
    kind: str,
) -> AsyncGenerator[str, None]:
    """Server-sent events, whose names begin with `kind`: at most so many previews, then each picture."""
    sent = 0
    pictures = []
    async with aclosing(stream) as events:
        async for event in events:
            if isinstance(event, Progress) and event.preview and sent < partial_images:
                file = await asyncio.to_thread(preview, event.preview, context)
                yield _event(f"{kind}.partial_image", file, context, partial_image_index=sent)
                sent += 1
            elif isinstance(event, Picture):
                pictures.append(event)
            elif isinstance(event, Completed):
                # Only now is it known what to say of the pictures.
                message = gateway.message(pictures, event)
                for picture in pictures:
                    more = {"seed": picture.seed, "message": message, "cached": picture.cached}
                    usage = usage_of(context.request)
                    yield _event(f"{kind}.completed", picture.file, context, usage=usage, **more)


def failure(error: Text2ImageError, body: dict[str, Any]) -> str:
    """The event of an error, with the body that an answer would have."""
    return line("error", {"type": "error", **body})


def usage_of(request: Request) -> dict[str, Any]:
    """The tokens of a request: those of its prompts are estimated, those of its pictures are counted by their size."""
    text = tokens_of(request.prompt) + tokens_of(request.negative_prompt)
    begun = pixel_tokens(request.image.width, request.image.height) if request.image else 0
    drawn = pixel_tokens(*request.final_size) * request.n
    return {
        "input_tokens": text + begun,
        "input_tokens_details": {"text_tokens": text, "image_tokens": begun},
        "output_tokens": drawn,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": drawn},
        "total_tokens": text + begun + drawn,
    }


def tokens_of(text: str) -> int:
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def pixel_tokens(width: int, height: int) -> int:
    return math.ceil(width / TOKEN_SIDE) * math.ceil(height / TOKEN_SIDE)


def told(context: RequestContext) -> dict[str, str]:
    """What is said of the pictures of a request, alike in answers and events."""
    width, height = context.request.final_size
    return {
        "output_format": context.encoding.format.value,
        "background": "opaque",
        "quality": QUALITIES.get(context.request.quality, "auto"),
        "size": f"{width}x{height}",
    }


def preview(pixels: Pixels, context: RequestContext) -> bytes:
    return encoding.preview(pixels, *context.request.final_size, context.encoding)


def _event(kind: str, file: bytes, context: RequestContext, **more: Any) -> str:
    body = {
        "type": kind,
        "b64_json": base64.b64encode(file).decode(),
        "created_at": int(time.time()),
        **told(context),
    }
    return line(kind, body | more)


def line(kind: str, body: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(body)}\n\n"
