"""The dialect of Hugging Face's inference API for text-to-image: `inputs` and `parameters` in, a picture's file out.

`POST /hf-inference/models/{model}` is what its hosted API has, `POST /` what a dedicated endpoint has, with the default
model. `huggingface_hub.InferenceClient(model=URL)` sends its requests to exactly the URL that it is given.
"""

from __future__ import annotations

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
from text2image.core import validation
from text2image.core.errors import InvalidRequest, Text2ImageError
from text2image.core.formats import Encoding, FileFormat
from text2image.core.messages import SIDE_MULTIPLE, RequestParams

TRANSPORT = "huggingface"
PREFIX = "/hf-inference"
SEED_HEADER = "X-Seed"
router = APIRouter()
_FORMS = {form.media_type: form for form in FileFormat}
# What our fields are called in this dialect, where it is not the same. All but the prompt are `parameters`.
_NAMES = {"steps": "num_inference_steps", "sampler": "scheduler"}
_SIDE = fields.documented(
    description="Pixels, within the model's limits.", minimum=1, multipleOf=SIDE_MULTIPLE
)


class Parameters(BaseModel):
    """How to draw; those of Hugging Face's task, and what this server adds to them."""

    model_config = ConfigDict(strict=True, extra="forbid")

    negative_prompt: str | None = fields.NEGATIVE_PROMPT
    width: fields.Integer | None = _SIDE
    height: fields.Integer | None = _SIDE
    num_inference_steps: fields.Integer | None = fields.documented(
        minimum=1, maximum=validation.MAX_STEPS
    )
    guidance_scale: float | None = fields.GUIDANCE_SCALE
    scheduler: str | None = fields.SAMPLER
    seed: fields.Integer | None = fields.SEED

    schedule: str | None = fields.SCHEDULE
    quality: str | None = fields.QUALITY
    loras: list[fields.Lora] | None = fields.LORAS
    clip_skip: fields.Integer | None = fields.CLIP_SKIP


class TextToImage(BaseModel):
    """A request for a picture. Parameters that are left out take the model's defaults."""

    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: str = Field(description="What to draw.", json_schema_extra=fields.PROMPT)
    parameters: Parameters | None = None
    options: dict[str, Any] | None = Field(
        None, description="Ignored; the API that Hugging Face hosts has some."
    )

    def params(self, model: str | None) -> RequestParams:
        """The request in our words."""
        asked = self.parameters or Parameters()
        return RequestParams(
            prompt=self.inputs,
            negative_prompt=asked.negative_prompt or "",
            width=asked.width,
            height=asked.height,
            steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            seed=asked.seed,
            n=1,
            sampler=asked.scheduler,
            schedule=asked.schedule,
            quality=asked.quality,
            model=model,
            loras=fields.weights_of(asked.loras),
            clip_skip=asked.clip_skip,
        )


class Failure(BaseModel):
    """Why it failed. `estimated_time` is the seconds after which the same request could succeed, where that helps."""

    error: str
    error_type: str
    estimated_time: float | None = None


def error_response(error: Text2ImageError) -> Response:
    """An error as this dialect says it."""
    return refused(error, JSONResponse(error_body(error)))


def error_body(error: Text2ImageError) -> dict[str, Any]:
    """The body of a failure."""
    if isinstance(error, InvalidRequest):
        error = error.renamed(_theirs(error))
    shown = Failure(error=error.message, error_type=error.reason, estimated_time=error.retry_after)
    return shown.model_dump(exclude_none=True)


def _theirs(error: InvalidRequest) -> dict[str, str]:
    """What the fields that an error names are called here."""
    ours = {violation.field for violation in error.violations} & set(RequestParams.__slots__)
    named = {name: f"parameters.{_NAMES.get(name, name)}" for name in ours}
    return {**named, "prompt": "inputs"}


def _form_of(accept: str) -> FileFormat:
    """The first form that a client accepts, or PNG."""
    named = (kind.partition(";")[0].strip().lower() for kind in accept.split(","))
    return next((_FORMS[kind] for kind in named if kind in _FORMS), FileFormat.PNG)


_DOCUMENTED: dict[str, Any] = {
    "tags": ["pictures"],
    "response_class": Response,
    "responses": {
        **schema.success("The picture.", schema.files(_FORMS), schema.DRAWN_HEADERS),
        **schema.refusals((*schema.DRAWING, schema.NOT_FOUND), Failure, error_body),
    },
}
_BODY = schema.body_of(TextToImage, {"inputs": "a red fox in the snow", "parameters": {"seed": 7}})
_MODEL = {
    "name": "model_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
    "example": "embedded",
}


@router.post(
    f"{PREFIX}/models/{{model_id:path}}",
    summary="Draw a picture, in the dialect of Hugging Face",
    openapi_extra={"parameters": [schema.TIMEOUT_PARAMETER, _MODEL], "requestBody": _BODY},
    **_DOCUMENTED,
)
async def picture_of_text(request: Request) -> Response:
    """Draws with a model and answers with the file: PNG, or what the header Accept names of PNG, JPEG and WebP."""

    return await _drawn(request, request.path_params["model_id"])


@router.post(
    "/",
    summary="Draw a picture with the default model, in the dialect of Hugging Face",
    openapi_extra={"parameters": [schema.TIMEOUT_PARAMETER], "requestBody": _BODY},
    **_DOCUMENTED,
)
async def endpoint(request: Request) -> Response:
    """Draws as a dedicated endpoint does, which has one model."""

    return await _drawn(request, None)


async def _drawn(request: Request, model: str | None) -> Response:
    async def work() -> Response:
        gateway, caller = gateway_of(request), caller_of(request)
        timeout = timeout_of(request)
        body = await read_json(request, TextToImage)
        form = _form_of(request.headers.get("Accept", ""))
        context = context_of(
            request,
            caller=caller,
            params=body.params(model),
            title=body.inputs,
            timeout=timeout,
            encoding=Encoding(form),
        )
        drawing = await unless_gone(request, gateway.draw(context))
        (picture,) = drawing.pictures
        headers = {SEED_HEADER: str(picture.seed)}
        file = Response(picture.file, media_type=form.media_type, headers=headers)
        return marked(file, context, drawing)

    return await answer(request, TRANSPORT, work, error_response)
