"""What the dialect answers: pictures with what A1111 tells of them, progress, and errors."""

from __future__ import annotations

import json
import time
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from text2image import __version__
from text2image.api.a1111.messages import Asked
from text2image.api.a1111.state import Job
from text2image.api.asgi import TIMEOUT_HEADER, refused
from text2image.core.errors import InvalidRequest, Text2ImageError, Unauthenticated
from text2image.core.messages import Request
from text2image.core.samplers import TITLES
from text2image.gateway import metadata
from text2image.gateway.context import RequestContext
from text2image.gateway.generate import Drawing

# Fields that hold others, which errors name after a dot.
_NESTED = ("override_settings", "alwayson_scripts", "styles", "init_images")
# Whoever can show a password alone waits to be asked for it.
_CHALLENGE = 'Basic realm="text2image", Bearer'


class Pictures(BaseModel):
    """A1111's TextToImageResponse and ImageToImageResponse."""

    images: list[str] = Field(description="Files as base64.")
    parameters: dict[str, Any] = Field(
        description="The request's fields, less pictures and scripts."
    )
    info: str = Field(description="JSON: seeds, prompts, and the parameters of each picture.")


class Location(BaseModel):
    """A bad field: where it is, and what is wrong with it."""

    loc: list[str]
    msg: str
    type: str


class ErrorResponse(BaseModel):
    """An error in A1111's form; of a bad request `detail` names each bad field, as FastAPI does."""

    error: str = Field(description="What kind of error it is.")
    detail: str | list[Location]
    body: str = ""
    errors: str = Field(description="The same for people.")


class ProgressState(BaseModel):
    """A1111's State."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressResponse(BaseModel):
    """A1111's ProgressResponse; nothing is drawn where `progress` and `state.job_count` are 0."""

    progress: float = 0.0
    eta_relative: float = Field(0.0, description="Seconds that are left.")
    state: ProgressState = Field(default_factory=ProgressState)
    current_image: str | None = Field(None, description="A preview: a PNG file as base64.")
    textinfo: str | None = None


def pictures_of(body: Asked, context: RequestContext, drawing: Drawing) -> dict[str, Any]:
    """The body of a `Pictures`, in which bytes stand for their base64."""
    images = [] if body.send_images is False else [each.file for each in drawing.pictures]
    info = json.dumps(info_of(body, context, drawing), ensure_ascii=False)
    return {"images": images, "parameters": body.told, "info": info}


def info_of(body: Asked, context: RequestContext, drawing: Drawing) -> dict[str, Any]:
    """What A1111's `Processed.js` tells, and what was not done as it does it."""
    request, model = context.request, context.model
    seeds = [picture.seed for picture in drawing.pictures]
    count = len(seeds)
    return {
        "prompt": body.prompt,
        "all_prompts": [body.prompt] * count,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": TITLES.get(request.sampler, request.sampler.value),
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": request.n,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model.id,
        "sd_model_hash": model.revision,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": _strength(request),
        "extra_generation_params": body.generation_params,
        "index_of_first_image": 0,
        "infotexts": [metadata.describe(request, seed, model) for seed in seeds],
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": request.clip_skip or 1,
        "is_using_inpainting_conditioning": False,
        "version": f"text2image {__version__}",
        "comments": [drawing.message, *body.notes()],
        "cached": drawing.cached,
    }


def _strength(request: Request) -> float | None:
    return request.strength if request.hires_scale is None else request.hires_strength


def progress_of(job: Job | None, image: str | None) -> ProgressResponse:
    """How far a job is; `image` is its preview."""
    if job is None:
        return ProgressResponse()
    step, steps = job.step
    return ProgressResponse(
        progress=job.done,
        eta_relative=job.seconds_left,
        state=ProgressState(
            interrupted=job.interrupted,
            job=job.task_id or job.kind,
            job_count=job.count,
            job_timestamp=time.strftime("%Y%m%d%H%M%S"),
            job_no=len(job.pictures),
            sampling_step=step,
            sampling_steps=steps,
        ),
        current_image=image,
    )


def error_response(error: Text2ImageError) -> Response:
    """An error as this dialect says it."""
    response = refused(error, JSONResponse(error_body(error)))
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = _CHALLENGE
    return response


def error_body(error: Text2ImageError) -> dict[str, Any]:
    """The body of a failure."""
    detail: str | list[Location] = error.message
    if isinstance(error, InvalidRequest):
        detail = [
            Location(loc=_location(each.field), msg=each.reason, type="value_error")
            for each in error.violations
        ]
    shown = ErrorResponse(error=type(error).__name__, detail=detail, errors=error.message)
    return shown.model_dump()


def _location(field: str) -> list[str]:
    if field == TIMEOUT_HEADER:
        return ["header", field]
    name, _, inner = field.partition(".")
    parts = [name, inner] if name in _NESTED and inner else [field]
    return ["body"] if parts == ["body"] else ["body", *parts]
