"""The dialect of OpenAI's image API: `POST` to `/v1/images/` `generations`, `edits` and `variations`, `GET /v1/models`.

Beyond it a request may name seed, steps, guidance_scale, negative_prompt, sampler, schedule and clip_skip, and as
quality `exact` or `fast`. What has no meaning here (other qualities, style, moderation, user) is taken and ignored, so
that existing clients need no change.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from text2image.api import schema
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
from text2image.api.forms import read_form
from text2image.api.openai_messages import (
    EVENTS,
    Adapter,
    EditRequest,
    ErrorEnvelope,
    ImagesRequest,
    ImagesResponse,
    Model,
    ModelList,
    VariationRequest,
    error_body,
)
from text2image.api.pictures import PictureResponse
from text2image.core.errors import FieldViolation, InvalidRequest, Text2ImageError
from text2image.core.messages import (
    ClientEvent,
    Completed,
    Loading,
    ModelInfo,
    Picture,
    Progress,
    RequestParams,
    StreamOptions,
)
from text2image.gateway import metadata
from text2image.gateway.auth import Caller
from text2image.gateway.context import RequestContext
from text2image.gateway.generate import Drawing, Gateway
from text2image.gateway.runners import Runners

TRANSPORT = "openai"
router = APIRouter(prefix="/v1")


def error_response(error: Text2ImageError) -> Response:
    """An error as this dialect says it."""
    return refused(error, JSONResponse(error_body(error)))


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


async def _streamed(
    gateway: Gateway, context: RequestContext, partial_images: int, kind: str
) -> Response:
    """Server-sent events. The runner's word is waited for, so that a refusal still gets its own status.

    Args:
        kind: what their names begin with.
    """
    events = gateway.stream(context)
    while isinstance(await anext(events), Loading):
        pass
    return EventStream(_sse(gateway, events, partial_images, kind), _sse_error)


async def _sse(
    gateway: Gateway, events: AsyncGenerator[ClientEvent, None], partial_images: int, kind: str
) -> AsyncGenerator[str, None]:
    sent = 0
    pictures = []
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Progress) and event.preview and sent < partial_images:
                png = metadata.encode(event.preview)
                yield _event(f"{kind}.partial_image", png, partial_image_index=sent)
                sent += 1
            elif isinstance(event, Picture):
                pictures.append(event)
            elif isinstance(event, Completed):
                # Only now is it known what to say of the pictures.
                message = gateway.message(pictures, event)
                for picture in pictures:
                    more = {"seed": picture.seed, "message": message, "cached": picture.cached}
                    yield _event(f"{kind}.completed", picture.png, **more)


def _sse_error(error: Text2ImageError) -> str:
    return _sse_line("error", {"type": "error", **error_body(error)})


def _event(kind: str, png: bytes, **more: Any) -> str:
    body = {"type": kind, "b64_json": _base64(png), "created_at": int(time.time())}
    return _sse_line(kind, {**body, "output_format": "png", "background": "opaque", **more})


def _sse_line(kind: str, body: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(body)}\n\n"


_MODEL_ID = {
    "name": "model_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "example": "embedded",
}
_SHOWN = {
    "output_format": "png",
    "background": "opaque",
    "message": "Image generated successfully",
    "cached": False,
}
_EXAMPLE = {
    "created": 1767225600,
    "data": [{"b64_json": schema.PNG_EXAMPLE, "seed": 7}],
    "size": "128x128",
    **_SHOWN,
}
_EVENT_EXAMPLE = {
    "type": "image_generation.completed",
    "b64_json": schema.PNG_EXAMPLE,
    "created_at": 1767225600,
    "seed": 7,
    **_SHOWN,
}


@router.post(
    "/images/generations",
    summary="Draw pictures, in the dialect of OpenAI",
    tags=["pictures"],
    response_model=ImagesResponse,
    responses={
        **schema.success(
            "The pictures, or events with `stream`.",
            schema.json(_EXAMPLE) | schema.events(EVENTS, _EVENT_EXAMPLE),
            schema.DRAWN_HEADERS,
        ),
        **schema.refusals((*schema.DRAWING, schema.NOT_FOUND), ErrorEnvelope, error_body),
    },
    openapi_extra={
        "parameters": [schema.TIMEOUT_PARAMETER],
        "requestBody": schema.body_of(ImagesRequest, {"prompt": "a red apple", "size": "128x128"}),
    },
)
async def create_image(request: Request) -> Response:
    """Draws and answers with the pictures as base64, or as server-sent events with `"stream": true`."""

    async def work() -> Response:
        gateway, caller = gateway_of(request), caller_of(request)
        timeout = timeout_of(request)
        body = await read_json(request, ImagesRequest)
        params = body.params(gateway.runners.named)
        return await _drawn(request, caller, timeout, body, params, "image_generation")

    return await answer(request, TRANSPORT, work, error_response)


async def _drawn(
    request: Request,
    caller: Caller,
    timeout: float,  # noqa: ASYNC109 - the deadline is the gateway's
    body: ImagesRequest,
    params: RequestParams,
    kind: str,
) -> Response:
    """The pictures, or events whose names begin with `kind`."""
    gateway = gateway_of(request)
    context = context_of(
        request,
        caller=caller,
        params=params,
        title=body.prompt,
        timeout=timeout,
        options=_options(body, gateway.runners.named(params.model)),
    )
    if body.stream:
        return await _streamed(gateway, context, body.partial_images or 0, kind)
    drawing = await unless_gone(request, gateway.draw(context))
    return marked(PictureResponse(_images(drawing)), context, drawing)


async def _changed(request: Request, kind: type[EditRequest]) -> Response:
    """The pictures that a form asks for, which begin from one in it."""

    async def work() -> Response:
        gateway, caller = gateway_of(request), caller_of(request)
        timeout = timeout_of(request)
        form = await read_form(request)
        body = form.parsed(kind)
        params = form.added_to(body.params(gateway.runners.named))
        # What is read is not held twice until the answer.
        del form
        if params.image is None:
            raise InvalidRequest(FieldViolation("image", "is missing; send it as a file"))
        return await _drawn(request, caller, timeout, body, params, "image_edit")

    return await answer(request, TRANSPORT, work, error_response)


@router.post(
    "/images/edits",
    summary="Draw on from a picture, in the dialect of OpenAI",
    tags=["pictures"],
    response_model=ImagesResponse,
    responses={
        **schema.success(
            "The pictures, or events with `stream`.",
            schema.json(_EXAMPLE)
            | schema.events(EVENTS, {**_EVENT_EXAMPLE, "type": "image_edit.completed"}),
            schema.DRAWN_HEADERS,
        ),
        **schema.refusals((*schema.DRAWING, schema.NOT_FOUND), ErrorEnvelope, error_body),
    },
    openapi_extra={
        "parameters": [schema.TIMEOUT_PARAMETER],
        "requestBody": schema.form_of(
            EditRequest,
            {"image": schema.PNG_EXAMPLE, "prompt": "a red apple", "strength": 0.7},
            ("image", "prompt"),
        ),
    },
)
async def edit_image(request: Request) -> Response:
    """Draws anew what is transparent in a form's mask, or else in its image; where nothing is, all of it."""

    return await _changed(request, EditRequest)


@router.post(
    "/images/variations",
    summary="Draw pictures that are like another one, in the dialect of OpenAI",
    tags=["pictures"],
    response_model=ImagesResponse,
    responses={
        **schema.success("The pictures.", schema.json(_EXAMPLE), schema.DRAWN_HEADERS),
        **schema.refusals((*schema.DRAWING, schema.NOT_FOUND), ErrorEnvelope, error_body),
    },
    openapi_extra={
        "parameters": [schema.TIMEOUT_PARAMETER],
        "requestBody": schema.form_of(
            VariationRequest, {"image": schema.PNG_EXAMPLE, "n": 2}, ("image",)
        ),
    },
)
async def vary_image(request: Request) -> Response:
    """Draws pictures that begin from another one; `strength` says how far they go from there."""

    return await _changed(request, VariationRequest)


@router.get(
    "/models",
    summary="The served models, in the dialect of OpenAI",
    tags=["models"],
    response_model=ModelList,
    responses={
        **schema.success(
            "The models.", schema.json(ModelList(data=[Model(id="embedded")]).model_dump())
        ),
        **schema.refusals(schema.READING, ErrorEnvelope, error_body),
    },
)
async def list_models(request: Request) -> Response:
    """Lists the models that are served, the default one first."""

    try:
        caller_of(request)
        runners = gateway_of(request).runners
        shown = [_shown(model, runners) for model in runners.models]
    except Text2ImageError as error:
        return error_response(error)
    return JSONResponse(ModelList(data=shown).model_dump())


def _shown(model: ModelInfo, runners: Runners) -> Model:
    states = {status.name: status.state.value for status in runners.status.models}
    return Model(
        id=model.id,
        aliases=list(model.aliases),
        licence=model.licence,
        inputs=[each.value for each in model.inputs],
        state=states[model.id],
        default=model.id == runners.model.id,
        loras=[
            Adapter(
                name=each.name,
                hash=each.hash,
                base=each.base,
                trigger_words=list(each.trigger_words),
            )
            for each in model.loras
            if not each.fault
        ],
        embeddings=[each.name for each in model.embeddings],
    )


@router.get(
    "/models/{model_id:path}",
    summary="A model, in the dialect of OpenAI",
    tags=["models"],
    response_model=Model,
    responses={
        **schema.success("The model.", schema.json(Model(id="embedded").model_dump())),
        **schema.refusals((*schema.READING, schema.NOT_FOUND), ErrorEnvelope, error_body),
    },
    openapi_extra={"parameters": [_MODEL_ID]},
)
async def get_model(request: Request) -> Response:
    """Tells of a served model, whose name may hold slashes."""

    model_id = request.path_params["model_id"]
    try:
        caller_of(request)
        runners = gateway_of(request).runners
        shown = _shown(runners.named(model_id), runners)
    except Text2ImageError as error:
        return error_response(error)
    return JSONResponse(shown.model_dump())
