"""The native HTTP dialect: `POST /generate`, whose HTTP status equals the `status_code` in its body."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from text2image.api import fields, schema
from text2image.api.asgi import (
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
from text2image.api.forms import decoded, is_form, read_form
from text2image.api.pictures import PictureResponse
from text2image.core import validation
from text2image.core.errors import InvalidRequest, Text2ImageError
from text2image.core.messages import SIDE_MULTIPLE, RequestParams
from text2image.gateway.generate import Drawing

TRANSPORT = "rest"
router = APIRouter()
# What our fields are called in this dialect, where it is not the same.
NAMES = {"prompt": "text"}
# Fields that are made into something else, or into nothing.
_OWN = {"text", "context", "images_only", "image", "mask", "loras", "controls", "background"}
_SIDE = fields.documented(
    description="Pixels, within the model's limits.", minimum=1, multipleOf=SIDE_MULTIPLE
)


class GenerateRequest(BaseModel):
    """What to draw. Fields that are left out take the model's defaults."""

    model_config = ConfigDict(strict=True, extra="forbid")

    text: str = Field(
        description="What to draw.",
        examples=["a futuristic city at night"],
        json_schema_extra=fields.PROMPT,
    )
    context: str | None = fields.documented(
        description="Added to the text.", examples=["cyberpunk"], **fields.TEXT
    )
    negative_prompt: str | None = fields.NEGATIVE_PROMPT
    width: fields.Integer | None = _SIDE
    height: fields.Integer | None = _SIDE
    steps: fields.Integer | None = fields.STEPS
    guidance_scale: float | None = fields.GUIDANCE_SCALE
    seed: fields.Integer | None = fields.SEED
    n: fields.Integer | None = fields.N
    sampler: str | None = fields.SAMPLER
    schedule: str | None = fields.SCHEDULE
    quality: str | None = fields.QUALITY
    model: str | None = fields.MODEL
    loras: list[fields.Lora] | None = fields.LORAS
    controls: list[fields.Control] | None = fields.CONTROLS
    image: str | None = fields.IMAGE
    strength: float | None = fields.STRENGTH
    mask: str | None = fields.MASK
    clip_skip: fields.Integer | None = fields.CLIP_SKIP
    hires_scale: float | None = fields.HIRES_SCALE
    hires_strength: float | None = fields.HIRES_STRENGTH
    hires_steps: fields.Integer | None = fields.HIRES_STEPS
    hires_upscaler: str | None = fields.HIRES_UPSCALER
    background: bool | None = Field(
        None, description="Draw when nobody else waits, within the deadline."
    )
    images_only: bool | None = Field(
        None, description="Leave out `image_base64`, which repeats the first of `images`."
    )

    def params(self) -> RequestParams:
        """The request in our words.

        Raises:
            InvalidRequest: the context cannot be added to the text, or a picture is no base64.
        """
        validation.check_context(self.text, self.context)
        return RequestParams(
            prompt=validation.compose_prompt(self.text, self.context),
            image=decoded("image", self.image),
            mask=decoded("mask", self.mask),
            loras=fields.weights_of(self.loras),
            controls=fields.controls_of(self.controls),
            **self.model_dump(include=_TAKEN),
        )


# A request of a job has fields beside these.
_TAKEN = set(GenerateRequest.model_fields) - _OWN


class GeneratedPicture(BaseModel):
    """One picture: PNG as base64, where it was saved, and the seed that draws it again."""

    image_base64: str
    image_path: str
    seed: int


class GenerateResponse(BaseModel):
    """The pictures; the first one stands outside the list too."""

    status_code: int = 200
    message: str
    image_base64: str | None = Field(None, description="Left out if `images_only` was asked for.")
    image_path: str
    seed: int
    images: list[GeneratedPicture]
    cached: bool = Field(False, description="All pictures were drawn for earlier requests.")


class Violation(BaseModel):
    """A bad field and what is wrong with it."""

    field: str
    reason: str


class ErrorResponse(BaseModel):
    """Why there is no picture. `violations` come with 400, `retry_after` (seconds) with 429 and 503."""

    status_code: int
    message: str
    reason: str
    violations: list[Violation] | None = None
    retry_after: float | None = None


def response_of(drawing: Drawing, *, images_only: bool = False) -> PictureResponse:
    """The answer with a request's pictures."""
    images = [
        {"image_base64": picture.png, "image_path": picture.path, "seed": picture.seed}
        for picture in drawing.pictures
    ]
    return PictureResponse(
        success(drawing.message, images, cached=drawing.cached, images_only=images_only)
    )


def success(
    message: str, images: list[dict[str, Any]], *, cached: bool = False, images_only: bool = False
) -> dict[str, Any]:
    """The body of a `GenerateResponse`, where each image has the fields of a `GeneratedPicture`."""
    body = {"status_code": 200, "message": message, **images[0], "images": images, "cached": cached}
    if images_only:
        del body["image_base64"]
    return body


def error_response(error: Text2ImageError) -> Response:
    """An error as this dialect says it."""
    return refused(error, JSONResponse(error_body(error)))


def error_body(error: Text2ImageError) -> dict[str, Any]:
    """The body of a failure."""
    if isinstance(error, InvalidRequest):
        error = error.renamed(NAMES)
    body = ErrorResponse(
        status_code=error.http_status,
        message=error.message,
        reason=error.reason,
        violations=[Violation(field=v.field, reason=v.reason) for v in error.violations]
        if isinstance(error, InvalidRequest)
        else None,
        retry_after=error.retry_after,
    )
    return body.model_dump(exclude_none=True)


_EXAMPLE = success(
    "Image generated successfully",
    [
        {
            "image_base64": schema.PNG_EXAMPLE,
            "image_path": "generated_images/red_fox_snow_20260504_123456.png",
            "seed": 7,
        }
    ],
)


async def _asked(request: Request) -> tuple[GenerateRequest, RequestParams]:
    """The body, less its pictures, and what it asks for."""
    if is_form(request):
        form = await read_form(request)
        body = form.parsed(GenerateRequest)
        return body, form.added_to(body.params())
    body = await read_json(request, GenerateRequest, pictures=True)
    params = await asyncio.to_thread(body.params) if body.image or body.controls else body.params()
    # What is read is not held twice until the answer.
    return body.model_copy(update={"image": None, "mask": None, "controls": None}), params


@router.post(
    "/generate",
    summary="Draw pictures from text, or from another picture",
    tags=["pictures"],
    response_model=GenerateResponse,
    responses={
        **schema.success("The pictures.", schema.json(_EXAMPLE), schema.DRAWN_HEADERS),
        **schema.refusals((*schema.DRAWING, schema.NOT_FOUND), ErrorResponse, error_body),
    },
    openapi_extra={
        "parameters": [schema.TIMEOUT_PARAMETER],
        "requestBody": schema.body_of(
            GenerateRequest, {"text": "a red fox in the snow", "seed": 7}
        ),
    },
)
async def generate(request: Request) -> Response:
    """Draws and answers when all pictures are finished. The header X-Request-Timeout sets a deadline in seconds.

    The same fields may come as a form (multipart/form-data), with image and mask as files.
    """

    async def work() -> Response:
        gateway, caller = gateway_of(request), caller_of(request)
        timeout = timeout_of(request)
        body, params = await _asked(request)
        context = context_of(
            request,
            caller=caller,
            params=params,
            title=f"{body.context or ''} {body.text}",
            timeout=timeout,
            background=bool(body.background),
        )
        # The gateway lets go of files once it has read them, and nobody else is to hold them.
        del params
        drawing = await unless_gone(request, gateway.draw(context))
        return marked(response_of(drawing, images_only=bool(body.images_only)), context, drawing)

    return await answer(request, TRANSPORT, work, error_response)
