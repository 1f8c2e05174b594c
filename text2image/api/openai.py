"""The dialect of OpenAI's image API: `POST` to `/v1/images/` `generations`, `edits` and `variations`, `GET /v1/models`.

Beyond it a request may name seed, steps, guidance_scale, negative_prompt, sampler, schedule and clip_skip, and as
quality `exact` or `fast`. What has no meaning here (other qualities, style, moderation, user) is taken and ignored, so
that existing clients need no change.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from text2image.api import openai_answers as answers
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
from text2image.api.openai_requests import FLEX, EditRequest, ImagesRequest, VariationRequest
from text2image.api.openai_responses import (
    EVENTS,
    Adapter,
    ErrorEnvelope,
    ImagesResponse,
    Model,
    ModelList,
    Net,
    Upscaler,
    error_body,
)
from text2image.api.pictures import PictureResponse
from text2image.core.errors import FieldViolation, InvalidRequest, Text2ImageError
from text2image.core.messages import Loading, ModelInfo, RequestParams, StreamOptions
from text2image.gateway.auth import Caller
from text2image.gateway.context import RequestContext
from text2image.gateway.generate import Gateway
from text2image.gateway.runners import Runners
from text2image.gateway.urls import Gone

TRANSPORT = "openai"
router = APIRouter(prefix="/v1")


def error_response(error: Text2ImageError) -> Response:
    """An error as this dialect says it."""
    return refused(error, JSONResponse(error_body(error)))


def options_of(body: ImagesRequest, model: ModelInfo) -> StreamOptions:
    """Previews in steps of equal length, where a streamed answer asks for any."""
    if not (body.stream and body.partial_images):
        return StreamOptions()
    steps = body.steps or body.num_inference_steps or model.steps
    every = max(1, steps // (body.partial_images + 1))
    return StreamOptions(progress_every=every, preview_every=every)


async def _streamed(
    gateway: Gateway, context: RequestContext, partial_images: int, kind: str
) -> Response:
    """Server-sent events. The runner's word is waited for, so that a refusal still gets its own status.

    Args:
        kind: what their names begin with.
    """
    stream = gateway.stream(context)
    while isinstance(await anext(stream), Loading):
        pass
    lines = answers.events(gateway, context, stream, partial_images, kind)
    return EventStream(lines, lambda error: answers.failure(error, error_body(error)))


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
    "quality": "high",
    "size": "128x128",
    "usage": {
        "input_tokens": 3,
        "input_tokens_details": {"text_tokens": 3, "image_tokens": 0},
        "output_tokens": 16,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 16},
        "total_tokens": 19,
    },
    "message": "Image generated successfully",
    "cached": False,
}
_EXAMPLE = {
    "created": 1767225600,
    "data": [{"b64_json": schema.PNG_EXAMPLE, "seed": 7}],
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
    """Draws and answers with the pictures as base64 or URLs, or as server-sent events with `"stream": true`."""

    async def work() -> Response:
        gateway, caller = gateway_of(request), caller_of(request)
        timeout = timeout_of(request)
        body = await read_json(request, ImagesRequest, pictures=True)
        named = gateway.runners.named
        params = (
            await asyncio.to_thread(body.params, named) if body.controls else body.params(named)
        )
        # What is read is not held twice until the answer.
        body = body.model_copy(update={"controls": None})
        context = _context(request, caller, timeout, body, params)
        return await _drawn(request, context, body, "image_generation")

    return await answer(request, TRANSPORT, work, error_response)


def _context(
    request: Request, caller: Caller, timeout: float, body: ImagesRequest, params: RequestParams
) -> RequestContext:
    return context_of(
        request,
        caller=caller,
        params=params,
        title=body.prompt,
        timeout=timeout,
        options=options_of(body, gateway_of(request).runners.named(params.model)),
        encoding=body.encoding,
        background=body.service_tier == FLEX,
    )


async def _drawn(
    request: Request, context: RequestContext, body: ImagesRequest, kind: str
) -> Response:
    """The pictures, or events whose names begin with `kind`."""
    gateway = gateway_of(request)
    try:
        if body.stream:
            return await _streamed(gateway, context, body.partial_images or 0, kind)
        drawing = await unless_gone(request, gateway.draw(context))
    except InvalidRequest as error:
        raise body.renamed(error) from None
    told = await answers.images(request, gateway, context, drawing, urls=body.wants_urls)
    return marked(PictureResponse(told), context, drawing)


async def _changed(request: Request, kind: type[EditRequest]) -> Response:
    """The pictures that a form asks for, which begin from one in it."""

    async def work() -> Response:
        gateway, caller = gateway_of(request), caller_of(request)
        timeout = timeout_of(request)
        form = await read_form(request)
        body = form.parsed(kind)
        params = form.added_to(body.params(gateway.runners.named))
        if params.image is None:
            raise InvalidRequest(FieldViolation("image", "is missing; send it as a file"))
        context = _context(request, caller, timeout, body, params)
        # The gateway lets go of files once it has read them, and nobody else is to hold them.
        del form, params
        return await _drawn(request, context, body, "image_edit")

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


# Clients follow these URLs, and make none of their own, so that they are no part of the description.
@router.get(f"{answers.FILES.removeprefix(router.prefix)}{{name:path}}", include_in_schema=False)
async def get_file(request: Request) -> Response:
    """Answers with a picture to whoever has a URL of it, with a key or without."""
    urls, asked = gateway_of(request).urls, request.query_params
    try:
        if urls is None:
            raise Gone
        file, form, left = await urls.read(
            request.path_params["name"], asked.get("expires", ""), asked.get("signature", "")
        )
    except Gone:
        raise HTTPException(404) from None
    except Text2ImageError as error:
        return error_response(error)
    # The URL is as good as the picture, and no cache on the way is its client's.
    return Response(
        file, media_type=form.media_type, headers={"Cache-Control": f"private, max-age={left}"}
    )


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
        quantization=model.quantization,
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
        controls=[
            Net(name=each.name, hash=each.hash, base=each.base)
            for each in model.controls
            if not each.fault
        ],
        upscalers=[
            Upscaler(name=each.name, hash=each.hash, scale=each.scale) for each in model.upscalers
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
