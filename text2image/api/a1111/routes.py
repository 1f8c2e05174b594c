"""The routes that draw: `txt2img` and `img2img`, how far they are, and what ends them.

Beside A1111's fields a request may name `quality`. `progress`, `interrupt` and `skip` know the caller's own drawings,
in this process alone, and one of them by `id_task`, which a request calls `force_task_id`.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from text2image.api import schema
from text2image.api.a1111 import answers
from text2image.api.a1111.messages import Asked, ImageToImage, TextToImage
from text2image.api.a1111.state import Job, State
from text2image.api.asgi import (
    answer,
    caller_of,
    context_of,
    gateway_of,
    marked,
    read_json,
    timeout_of,
    unless_gone,
)
from text2image.api.pictures import PictureResponse
from text2image.core.errors import Cancelled, InvalidRequest
from text2image.core.messages import RequestParams
from text2image.gateway import metadata
from text2image.gateway.auth import Caller
from text2image.gateway.context import RequestContext
from text2image.gateway.generate import Drawing, Gateway
from text2image.net.rpc import as_ours

TRANSPORT = "a1111"
PREFIX = "/sdapi/v1"
PROGRESS = "/internal/progress"
router = APIRouter()

_INTERRUPTED = "the drawing was interrupted"
_INFO = '{"prompt": "a red fox", "seed": 7, "all_seeds": [7], "infotexts": ["a red fox\\nSteps: 20, Seed: 7"]}'
_DRAWN = {"images": [schema.PNG_EXAMPLE], "parameters": {"prompt": "a red fox"}, "info": _INFO}
_TASK = {
    "name": "id_task",
    "in": "query",
    "description": "Of the caller's drawings the one that was sent with this as `force_task_id`.",
    "schema": {"type": "string"},
    "example": "task(1)",
}
_SKIP_IMAGE = {
    "name": "skip_current_image",
    "in": "query",
    "description": "Leave out the preview.",
    "schema": {"type": "boolean"},
    "example": False,
}


def state_of(request: Request) -> State:
    """What the dialect remembers."""
    state: State = request.app.state.a1111
    return state


async def _drawn(request: Request, kind: type[Asked]) -> Response:
    """The pictures that a body of this kind asks for."""

    async def work() -> Response:
        gateway, caller = gateway_of(request), caller_of(request)
        timeout = timeout_of(request)
        body, params = await _asked(request, kind, caller)
        context = context_of(
            request,
            caller=caller,
            params=params,
            title=body.prompt,
            timeout=timeout,
            options=body.options,
            encoding=body.encoding,
        )
        job = Job(caller.name, body.force_task_id or "", params.n or 1, kind.__name__)
        context.watch = job.watch
        # The gateway lets go of files once it has read them, and nobody else is to hold them.
        del params
        try:
            with state_of(request).jobs.running(job):
                drawing = await unless_gone(request, _interruptible(gateway, context, job))
        except InvalidRequest as error:
            raise body.renamed(error) from None
        told = await asyncio.to_thread(answers.pictures_of, body, context, drawing)
        return marked(PictureResponse(told), context, drawing)

    return await answer(request, TRANSPORT, work, answers.error_response)


async def _asked(
    request: Request, kind: type[Asked], caller: Caller
) -> tuple[Asked, RequestParams]:
    """The body, less its pictures, and what it asks for."""
    named, chosen = gateway_of(request).runners.named, state_of(request).choices.of(caller.name)
    body = await read_json(request, kind, pictures=True)
    if not (isinstance(body, ImageToImage) or body.alwayson_scripts):
        return body, body.params(named, chosen)
    params = await asyncio.to_thread(body.params, named, chosen)
    # What is read is not held twice until the answer, and errors go by what was sent.
    return body.without_pictures(), params


async def _interruptible(gateway: Gateway, context: RequestContext, job: Job) -> Drawing:
    """A drawing, or as much of it as there is when somebody ends it.

    Raises:
        Cancelled: there is none of it yet.
        Text2ImageError: as `Gateway.draw` says.
    """
    task = asyncio.ensure_future(gateway.draw(context))
    job.ends_by(task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        if not job.interrupted:
            raise
    if not job.pictures:
        raise Cancelled(_INTERRUPTED)
    pictures = sorted(job.pictures, key=lambda picture: picture.index)
    return Drawing(pictures, _INTERRUPTED, remembered=False)


async def told(work: Callable[[], Awaitable[Any]]) -> Response:
    """What comes of `work`, as JSON, or its error; of what draws nothing, and so is not measured as a request."""
    try:
        return JSONResponse(await work())
    except ClientDisconnect:
        return answers.error_response(Cancelled("the client left before the request was read"))
    except Exception as error:
        return answers.error_response(as_ours(error))


def _responses(description: str, content: dict[str, Any]) -> schema.Responses:
    return {
        **schema.success(description, schema.json(content), schema.DRAWN_HEADERS),
        **schema.refusals(
            (*schema.DRAWING, schema.NOT_FOUND), answers.ErrorResponse, answers.error_body
        ),
    }


def reading(description: str, example: Any) -> schema.Responses:
    """The responses of a route that only reads."""
    return {
        **schema.success(description, {"application/json": {"example": example}}),
        **schema.refusals(schema.READING, answers.ErrorResponse, answers.error_body),
    }


@router.post(
    f"{PREFIX}/txt2img",
    summary="Draw pictures from text, in the dialect of A1111",
    tags=["A1111"],
    response_model=answers.Pictures,
    responses=_responses("The pictures.", _DRAWN),
    openapi_extra={
        "parameters": [schema.TIMEOUT_PARAMETER],
        "requestBody": schema.body_of(TextToImage, {"prompt": "a red fox", "seed": 7}),
    },
)
async def text_to_image(request: Request) -> Response:
    """Draws and answers when all pictures are finished; `enable_hr` enlarges them and draws on from there."""

    return await _drawn(request, TextToImage)


@router.post(
    f"{PREFIX}/img2img",
    summary="Draw on from a picture, in the dialect of A1111",
    tags=["A1111"],
    response_model=answers.Pictures,
    responses=_responses("The pictures.", _DRAWN),
    openapi_extra={
        "parameters": [schema.TIMEOUT_PARAMETER],
        "requestBody": schema.body_of(
            ImageToImage,
            {
                "prompt": "a red fox",
                "init_images": [schema.PNG_EXAMPLE],
                "denoising_strength": 0.75,
            },
        ),
    },
)
async def image_to_image(request: Request) -> Response:
    """Draws on from a picture, in all of it or where a mask is white."""

    return await _drawn(request, ImageToImage)


def _asked_for(request: Request) -> list[Job]:
    """The caller's drawings, or the one that the query names.

    Raises:
        Text2ImageError: it is not known who asks.
    """
    name = request.query_params.get("id_task", "")
    return state_of(request).jobs.of(caller_of(request).name, name)


async def _preview(job: Job | None) -> str | None:
    if job is None or job.preview is None:
        return None
    png = await asyncio.to_thread(metadata.encode, job.preview)
    return base64.b64encode(png).decode()


@router.get(
    f"{PREFIX}/progress",
    summary="How far the caller's oldest drawing is, in the dialect of A1111",
    tags=["A1111"],
    response_model=answers.ProgressResponse,
    responses=reading("How far it is.", answers.ProgressResponse().model_dump()),
    openapi_extra={"parameters": [_TASK, _SKIP_IMAGE]},
)
async def get_progress(request: Request) -> Response:
    """Tells how far a drawing is; of one with a `force_task_id` there is a preview every 10 steps."""

    async def work() -> Any:
        job = next(iter(_asked_for(request)), None)
        skipped = request.query_params.get("skip_current_image", "").lower() in ("true", "1")
        shown = None if skipped else await _preview(job)
        return answers.progress_of(job, shown).model_dump()

    return await told(work)


class TaskRequest(BaseModel):
    """A1111's ProgressRequest of its own page."""

    model_config = ConfigDict(extra="forbid")

    id_task: str = Field(description="What a request called `force_task_id`.")
    id_live_preview: int | None = Field(None, description="The preview that is there already.")
    live_preview: bool | None = Field(None, description="Whether to tell a preview; it does.")


class TaskProgress(BaseModel):
    """A1111's ProgressResponse of its own page."""

    active: bool = Field(description="It is being drawn.")
    queued: bool = False
    completed: bool = Field(description="It was over a short while ago.")
    progress: float | None = None
    eta: float | None = Field(None, description="Seconds that are left.")
    live_preview: str | None = Field(None, description="A PNG file as a data URL.")
    id_live_preview: int | None = None
    textinfo: str | None = None


@router.post(
    PROGRESS,
    summary="How far a drawing is, as the page of A1111 asks for it",
    tags=["A1111"],
    response_model=TaskProgress,
    responses=_responses("How far it is.", TaskProgress(active=False, completed=True).model_dump()),
    openapi_extra={"requestBody": schema.body_of(TaskRequest, {"id_task": "task(1)"})},
)
async def get_task_progress(request: Request) -> Response:
    """Tells how far the drawing is whose `force_task_id` is named."""

    async def work() -> Any:
        owner = caller_of(request).name
        asked = await read_json(request, TaskRequest)
        jobs = state_of(request).jobs
        job = next(iter(jobs.of(owner, asked.id_task)), None) if asked.id_task else None
        if job is None:
            over = jobs.has_ended(owner, asked.id_task)
            return TaskProgress(active=False, completed=over).model_dump()
        known = asked.live_preview is False or asked.id_live_preview == job.previews
        png = None if known else await _preview(job)
        return TaskProgress(
            active=True,
            completed=False,
            progress=job.done,
            eta=job.seconds_left,
            live_preview=f"data:image/png;base64,{png}" if png else None,
            id_live_preview=job.previews,
        ).model_dump()

    return await told(work)


async def _ended(request: Request, *, oldest: bool) -> Response:
    async def work() -> Any:
        for job in _asked_for(request)[: 1 if oldest else None]:
            job.interrupt()
        return {}

    return await told(work)


class Nothing(BaseModel):
    """An empty object."""


@router.post(
    f"{PREFIX}/interrupt",
    summary="End the caller's drawings, in the dialect of A1111",
    tags=["A1111"],
    response_model=Nothing,
    responses=reading("They end within a step.", {}),
    openapi_extra={"parameters": [_TASK]},
)
async def interrupt(request: Request) -> Response:
    """Ends all of the caller's drawings, or the named one; each answers with the pictures that are finished."""

    return await _ended(request, oldest=False)


@router.post(
    f"{PREFIX}/skip",
    summary="End the caller's oldest drawing, in the dialect of A1111",
    tags=["A1111"],
    response_model=Nothing,
    responses=reading("It ends within a step.", {}),
    openapi_extra={"parameters": [_TASK]},
)
async def skip(request: Request) -> Response:
    """Ends the caller's oldest drawing, or the named one; it answers with the pictures that are finished."""

    return await _ended(request, oldest=True)
