"""The dialect of OpenAI's image API: `POST /v1/images/generations` and `GET /v1/models`.

Beyond it a request may name seed, steps, guidance_scale, negative_prompt and sampler. What has no meaning here
(quality, style, moderation, user) is taken and ignored, so that existing clients need no change.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from text2image.api.asgi import (
    EventStream,
    answer,
    caller_of,
    context_of,
    gateway_of,
    marked,
    read_json,
    refused,
    timeout_of,
    unless_gone,
)
from text2image.api.pictures import PictureResponse
from text2image.core.errors import (
    FieldViolation,
    InvalidRequest,
    ModelNotFound,
    Text2ImageError,
)
from text2image.core.messages import (
    ClientEvent,
    Completed,
    ModelInfo,
    Picture,
    Progress,
    RequestParams,
    StreamOptions,
)
from text2image.gateway import metadata
from text2image.gateway.context import RequestContext
from text2image.gateway.generate import Drawing, Gateway

TRANSPORT = "openai"
router = APIRouter(prefix="/v1")
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
# What our fields are called in this dialect, where it is not the same.
_NAMES = {"width": "size", "height": "size"}


class ImagesRequest(BaseModel):
    """OpenAI's CreateImageRequest, and what this server adds to it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: str
    model: str | None = Field(None, description="The served model, as GET /v1/models names it.")
    n: int | None = None
    size: str | None = Field(None, description="`auto`, or pixels as in `512x512`.")
    response_format: str | None = Field(None, description="Only `b64_json`.")
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)

    negative_prompt: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    sampler: str | None = None

    quality: str | None = Field(None, description="Ignored.")
    style: str | None = Field(None, description="Ignored.")
    moderation: str | None = Field(None, description="Ignored.")
    output_compression: int | None = Field(None, description="Ignored: PNG is lossless.")
    user: str | None = Field(None, description="Ignored.")

    def params(self, model: ModelInfo) -> RequestParams:
        """The request in our words.

        Raises:
            InvalidRequest: it asks for what this server does not do.
        """
        violations = list(_violations(self, model))
        if violations:
            raise InvalidRequest(*violations)
        width, height = _sides(self.size)
        return RequestParams(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            n=self.n,
            sampler=self.sampler,
        )


def _violations(body: ImagesRequest, model: ModelInfo) -> Iterator[FieldViolation]:
    if body.model is not None and body.model != model.id:
        yield FieldViolation("model", f"is {body.model[:80]!r}; this server serves {model.id!r}")
    if body.response_format not in (None, "b64_json"):
        yield FieldViolation("response_format", "must be 'b64_json'; this server hosts no files")
    if body.size not in (None, "auto") and not _SIZE.fullmatch(body.size or ""):
        yield FieldViolation("size", "must be 'auto' or pixels as in '512x512'")
    if body.stream and body.n not in (None, 1):
        yield FieldViolation("n", "must be 1 when the answer is streamed")


def _sides(size: str | None) -> tuple[int | None, int | None]:
    match = _SIZE.fullmatch(size or "")
    return (int(match[1]), int(match[2])) if match else (None, None)


@router.post(
    "/images/generations",
    summary="Draw pictures, in the dialect of OpenAI",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": ImagesRequest.model_json_schema()}},
        }
    },
)
async def create_image(request: Request) -> Response:
    """Draws and answers with the pictures as base64, or as server-sent events with `"stream": true`."""

    async def work() -> Response:
        gateway, caller = gateway_of(request), caller_of(request)
        timeout = timeout_of(request)
        body = await read_json(request, ImagesRequest)
        model = gateway.runners.model
        context = context_of(
            request,
            caller=caller,
            params=body.params(model),
            title=body.prompt,
            timeout=timeout,
            options=_options(body, model),
        )
        if body.stream:
            return await _streamed(gateway, context, body.partial_images or 0)
        drawing = await unless_gone(request, gateway.draw(context))
        return marked(PictureResponse(_images(drawing)), context, drawing)

    return await answer(request, TRANSPORT, work, error_response)


@router.get("/models", summary="The served model, in the dialect of OpenAI")
async def list_models(request: Request) -> Response:
    """Lists the one model that is served."""

    try:
        caller_of(request)
        model = gateway_of(request).runners.model
    except Text2ImageError as error:
        return error_response(error)
    return JSONResponse({"object": "list", "data": [_entry(model)]})


@router.get("/models/{model_id:path}", summary="A model, in the dialect of OpenAI")
async def get_model(request: Request, model_id: str) -> Response:
    """Tells of the served model, whose name may hold slashes."""

    try:
        caller_of(request)
        model = gateway_of(request).runners.model
        if model_id != model.id:
            raise ModelNotFound(f"{model_id[:80]!r} is not served here; {model.id!r} is")
    except Text2ImageError as error:
        return error_response(error)
    return JSONResponse(_entry(model))


def _entry(model: ModelInfo) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": 0, "owned_by": "text2image"}


def error_response(error: Text2ImageError) -> Response:
    """An error as this dialect says it."""
    return refused(error, JSONResponse({"error": _error(error)}))


def _error(error: Text2ImageError) -> dict[str, Any]:
    if isinstance(error, InvalidRequest):
        error = error.renamed(_NAMES)
    return {
        "message": error.message,
        "type": error.openai_type,
        "param": _param(error),
        "code": error.reason.lower(),
    }


def _param(error: Text2ImageError) -> str | None:
    match error:
        case InvalidRequest(violations=(first, *_)):
            return first.field
        case ModelNotFound():
            return "model"
        case _:
            return None


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _images(drawing: Drawing) -> dict[str, Any]:
    first = drawing.pictures[0]
    return {
        "created": int(time.time()),
        "data": [{"b64_json": picture.png, "seed": picture.seed} for picture in drawing.pictures],
        "output_format": "png",
        "background": "opaque",
        "size": f"{first.width}x{first.height}",
        "message": drawing.message,
        "cached": drawing.cached,
    }


def _options(body: ImagesRequest, model: ModelInfo) -> StreamOptions:
    """Previews in steps of equal length, where a streamed answer asks for any."""
    if not (body.stream and body.partial_images):
        return StreamOptions()
    every = max(1, (body.steps or model.steps) // (body.partial_images + 1))
    return StreamOptions(progress_every=every, preview_every=every)


async def _streamed(gateway: Gateway, context: RequestContext, partial_images: int) -> Response:
    """Server-sent events. The first event is waited for, so that a refusal still gets its own status."""
    events = gateway.stream(context)
    await anext(events)
    return EventStream(_sse(gateway, events, partial_images), _sse_error)


async def _sse(
    gateway: Gateway, events: AsyncGenerator[ClientEvent, None], partial_images: int
) -> AsyncGenerator[str, None]:
    sent = 0
    pictures = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Progress) and event.preview and sent < partial_images:
                png = metadata.encode(event.preview)
                yield _event("image_generation.partial_image", png, partial_image_index=sent)
                sent += 1
            elif isinstance(event, Picture):
                pictures.append(event)
            elif isinstance(event, Completed):
                # Only now is it known what to say of the pictures.
                message = gateway.message(pictures, event.truncated)
                for picture in pictures:
                    more = {"seed": picture.seed, "message": message, "cached": picture.cached}
                    yield _event("image_generation.completed", picture.png, **more)


def _sse_error(error: Text2ImageError) -> str:
    return _sse_line("error", {"type": "error", "error": _error(error)})


def _event(kind: str, png: bytes, **more: Any) -> str:
    body = {"type": kind, "b64_json": _base64(png), "created_at": int(time.time())}
    return _sse_line(kind, {**body, "output_format": "png", "background": "opaque", **more})


def _sse_line(kind: str, body: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(body)}\n\n"
