"""What clients of OpenAI's dialect are told."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from text2image.api.openai_requests import NAMES
from text2image.core.errors import InvalidRequest, ModelNotFound, Text2ImageError
from text2image.core.messages import Input, ModelState


class ImageData(BaseModel):
    """One picture: its file as base64, or a URL of it, and the seed that draws it again."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class TokenDetails(BaseModel):
    """Tokens by what they stand for."""

    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """What a request took, in OpenAI's unit: about four letters of a prompt, or 32 x 32 pixels of a picture."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: TokenDetails
    total_tokens: int


class ImagesResponse(BaseModel):
    """OpenAI's ImagesResponse, and what this server adds to it."""

    created: int = Field(description="Seconds since 1970.")
    data: list[ImageData]
    output_format: str
    background: str
    quality: str = Field(description="`high` of exact pictures, `low` of fast ones.")
    size: str
    usage: Usage
    message: str = Field(description="How it went, for people.")
    cached: bool = Field(description="All pictures were drawn for earlier requests.")


class _Event(BaseModel):
    b64_json: str
    created_at: int = Field(description="Seconds since 1970.")
    output_format: str
    background: str
    quality: str
    size: str


class PartialImage(_Event):
    """A preview, as large as its picture and in the same form."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"]
    partial_image_index: int


class CompletedImage(_Event):
    """A picture, as `ImageData` and `ImagesResponse` have it."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    usage: Usage
    seed: int
    message: str
    cached: bool


class Adapter(BaseModel):
    """A file of small changes to a model (LoRA), as requests name it."""

    name: str
    hash: str = Field(description="The first digits of the file's SHA-256.")
    base: str = Field("", description="The family that it was made for, where it tells.")
    trigger_words: list[str] = Field([], description="What calls for it, as it tells.")


class Net(BaseModel):
    """A ControlNet, as requests name it."""

    name: str
    hash: str = Field(description="The first digits of a SHA-256 of parts of it.")
    base: str = Field("", description="The family that it was made for, where that is known.")


class Upscaler(BaseModel):
    """A network that enlarges pictures, as requests name it."""

    name: str
    hash: str
    scale: int = Field(description="What it enlarges a side by.")


class Model(BaseModel):
    """A model that is served, and what this server adds to OpenAI's words for it."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "text2image"
    aliases: list[str] = Field([], description="Other names that requests may give it.")
    licence: str = ""
    inputs: list[str] = Field(
        [Input.TEXT.value], description=f"What it draws from: {', '.join(Input)}."
    )
    quantization: str = Field(
        "", description="What its weights are in, where that is fewer bits: `int8`, `fp8` or `nf4`."
    )
    state: str = Field(
        ModelState.LOADED.value,
        description="`loaded`; `idle`, which a request has loaded first; `loading`; or `failed`.",
    )
    default: bool = Field(True, description="It is that of requests that name none.")
    loras: list[Adapter] = Field([], description="Adapters that it can be drawn with.")
    controls: list[Net] = Field([], description="ControlNets that it can be steered by.")
    upscalers: list[Upscaler] = Field(
        [], description="What may enlarge its pictures, beside Lanczos' filter."
    )
    embeddings: list[str] = Field([], description="Textual inversions that prompts may name.")


class ModelList(BaseModel):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class Error(BaseModel):
    """Why it failed; `param` names the field that is to blame, if one is."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorEnvelope(BaseModel):
    """An error as OpenAI's clients read it."""

    error: Error


def _described(event: type[_Event]) -> dict[str, Any]:
    """The schema of an event; what it refers to is described with the whole answers."""
    described = event.model_json_schema(ref_template="#/components/schemas/{model}")
    described.pop("$defs", None)
    return described


# What the events of a streamed answer hold.
EVENTS = {
    "anyOf": [
        _described(PartialImage),
        _described(CompletedImage),
        {
            "title": "Failure",
            "type": "object",
            "required": ["type", "error"],
            "properties": {
                "type": {"const": "error"},
                "error": {"$ref": "#/components/schemas/Error"},
            },
        },
    ]
}


def error_body(error: Text2ImageError) -> dict[str, Any]:
    """The body of a failure."""
    if isinstance(error, InvalidRequest):
        error = error.renamed(NAMES)
    shown = Error(
        message=error.message,
        type=error.openai_type,
        param=_param(error),
        code=error.openai_code or error.reason.lower(),
    )
    return ErrorEnvelope(error=shown).model_dump()


def _param(error: Text2ImageError) -> str | None:
    match error:
        case InvalidRequest(violations=(first, *_)):
            return first.field
        case ModelNotFound():
            return "model"
        case _:
            return None
