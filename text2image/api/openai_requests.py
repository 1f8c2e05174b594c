"""What clients of OpenAI's dialect send."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field

from text2image.api import fields
from text2image.api.forms import decoded
from text2image.core import validation
from text2image.core.errors import (
    FieldViolation,
    InvalidRequest,
    ModelNotFound,
)
from text2image.core.formats import MAX_QUALITY, Encoding, FileFormat
from text2image.core.messages import ModelInfo, Quality, RequestParams
from text2image.core.settings import get_settings

# Finds a model by its name, or the default one.
Named = Callable[[str | None], ModelInfo]
T = TypeVar("T")

_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")
# How much of a picture is to change where another is asked for that is like it.
VARIATION_STRENGTH = 0.6
# What our fields are called in this dialect, where it is not the same.
NAMES = {"width": "size", "height": "size"}
# Fields that other servers of this dialect call otherwise, and their clients too.
_OTHER_NAMES = {"steps": "num_inference_steps", "guidance_scale": "cfg_scale"}
# Any other seed below 0 is refused, as everywhere.
_RANDOM_SEED = -1
# What OpenAI answered without being asked for either form, by the names of its models.
_MODELS_WITH_URLS = re.compile(r"dall-e-[0-9]")
_FORMATS = tuple(FileFormat)
# What OpenAI calls work that is cheap and may take long.
FLEX = "flex"
_TIERS = ("auto", "default", FLEX)


class ImagesRequest(BaseModel):
    """OpenAI's CreateImageRequest, and what this server adds to it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: str = Field(description="What to draw.", json_schema_extra=fields.PROMPT)
    model: str | None = fields.MODEL
    n: fields.Integer | None = fields.N
    size: str | None = fields.documented(
        description="`auto`, or pixels as in `512x512`.", pattern=rf"^(auto|{_SIZE.pattern})?$"
    )
    response_format: str | None = fields.documented(
        description="`b64_json`, or `url` for one that works for some time; if left out `b64_json`, save for a model "
        "that is named `dall-e-2` or `dall-e-3`.",
        enum=["b64_json", "url", "", None],
    )
    output_format: str | None = fields.documented(
        description="Form of the files; PNG if left out.", enum=[*_FORMATS, "", None]
    )
    output_compression: fields.Integer | None = fields.documented(
        description="How much of a picture JPEG and WebP keep; all that they can if left out. PNG is lossless.",
        minimum=0,
        maximum=MAX_QUALITY,
    )
    background: str | None = fields.documented(
        description="Pictures are opaque.", enum=["auto", "opaque", "", None]
    )
    stream: bool | None = None
    partial_images: fields.Integer | None = Field(
        None,
        description="Previews, where the answer is streamed.",
        ge=0,
        le=3,
        json_schema_extra={"minimum": 0, "maximum": 3},
    )

    negative_prompt: str | None = fields.NEGATIVE_PROMPT
    steps: fields.Integer | None = fields.STEPS
    guidance_scale: float | None = fields.GUIDANCE_SCALE
    num_inference_steps: fields.Integer | None = fields.documented(
        description="The same as `steps`.", minimum=1, maximum=validation.MAX_STEPS
    )
    cfg_scale: float | None = fields.documented(
        description="The same as `guidance_scale`.", minimum=0, maximum=validation.MAX_GUIDANCE
    )
    seed: fields.Integer | None = fields.documented(
        description="Picture i of n is drawn from seed + i; -1 is a random one.",
        minimum=_RANDOM_SEED,
        maximum=validation.MAX_SEED,
    )
    sampler: str | None = fields.SAMPLER
    schedule: str | None = fields.SCHEDULE
    quality: str | None = Field(
        None,
        description=f"`{Quality.EXACT}` or `{Quality.FAST}`; what OpenAI's models know is ignored.",
    )
    loras: list[fields.Lora] | None = fields.LORAS
    controls: list[fields.Control] | None = fields.CONTROLS

    clip_skip: fields.Integer | None = fields.CLIP_SKIP
    service_tier: str | None = fields.documented(
        description=f"`{FLEX}` draws when nobody else waits, within the deadline.",
        enum=["auto", "default", FLEX, "", None],
    )

    style: str | None = Field(None, description="Ignored.")
    moderation: str | None = Field(None, description="Ignored.")
    complexity: str | None = Field(None, description="Ignored.")
    user: str | None = Field(None, description="Ignored.")
    safety_identifier: str | None = Field(None, description="Ignored.")

    @property
    def encoding(self) -> Encoding:
        """The form of the files."""
        quality = MAX_QUALITY if self.output_compression is None else self.output_compression
        return Encoding(FileFormat(self.output_format or FileFormat.PNG), quality)

    @property
    def wants_urls(self) -> bool:
        """Whether the answer names URLs in place of the pictures themselves."""
        if self.response_format:
            return self.response_format == "url"
        return bool(_MODELS_WITH_URLS.fullmatch(self.model or "")) and not self.stream

    def renamed(self, error: InvalidRequest) -> InvalidRequest:
        """The error in the words that this client sent."""
        sent = {
            ours: theirs
            for ours, theirs in _OTHER_NAMES.items()
            if getattr(self, ours) is None and getattr(self, theirs) is not None
        }
        return error.renamed(NAMES | sent)

    def params(self, named: Named) -> RequestParams:
        """The request in our words.

        Raises:
            InvalidRequest: it asks for what this server does not do.
            Unavailable: it is not known yet which models there are.
        """
        violations = list(_violations(self, named))
        if violations:
            raise InvalidRequest(*violations)
        width, height = _sides(self.size)
        return RequestParams(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            steps=_either(self.steps, self.num_inference_steps),
            guidance_scale=_either(self.guidance_scale, self.cfg_scale),
            seed=None if self.seed == _RANDOM_SEED else self.seed,
            n=self.n,
            sampler=self.sampler or None,
            schedule=self.schedule,
            quality=_quality(self.quality),
            model=self.model or None,
            loras=fields.weights_of(self.loras),
            controls=fields.controls_of(self.controls),
            clip_skip=self.clip_skip,
        )


class EditRequest(ImagesRequest):
    """OpenAI's CreateImageEditRequest: a form, with image and mask as files."""

    image: bytes | None = Field(
        None,
        description="The picture to change: a PNG, JPEG or WebP file, or one as base64. What is transparent is drawn "
        "anew, unless there is a mask.",
        json_schema_extra=fields.FILE,
    )
    mask: bytes | None = Field(
        None,
        description="A file of the image's size, transparent where it is drawn anew.",
        json_schema_extra=fields.FILE,
    )
    strength: float | None = fields.STRENGTH
    input_fidelity: str | None = Field(None, description="Ignored; see strength.")

    def params(self, named: Named) -> RequestParams:
        params = super().params(named)
        return replace(params, strength=self.strength, mask_by_alpha=True)


class ImageReference(BaseModel):
    """A picture that stands in JSON. Nothing is fetched from elsewhere."""

    model_config = ConfigDict(strict=True, extra="forbid")

    image_url: str = Field(description="A PNG, JPEG or WebP file as a `data:` URL.")

    def file(self, name: str) -> bytes:
        """The file of the field `name`.

        Raises:
            InvalidRequest: it is none.
        """
        if not self.image_url.startswith("data:"):
            reason = "must be a data: URL with the file as base64; this server fetches nothing"
            raise InvalidRequest(FieldViolation(f"{name}.image_url", reason))
        return decoded(f"{name}.image_url", self.image_url) or b""


class JsonEditRequest(ImagesRequest):
    """OpenAI's edit as JSON, as lines of a batch hold it."""

    images: list[ImageReference] = Field(min_length=1, max_length=1)
    mask: ImageReference | None = None
    strength: float | None = None
    input_fidelity: str | None = None

    def params(self, named: Named) -> RequestParams:
        return replace(
            super().params(named),
            image=self.images[0].file("images.0"),
            mask=self.mask.file("mask") if self.mask else None,
            strength=self.strength,
            mask_by_alpha=True,
        )


class VariationRequest(EditRequest):
    """OpenAI's CreateImageVariationRequest, which needs no prompt."""

    prompt: str = Field("", description="What to draw, beside what is there.")

    def params(self, named: Named) -> RequestParams:
        strength = VARIATION_STRENGTH if self.strength is None else self.strength
        return replace(super().params(named), strength=strength)


def _violations(body: ImagesRequest, named: Named) -> Iterator[FieldViolation]:
    if body.model:
        try:
            named(body.model)
        except ModelNotFound as error:
            yield FieldViolation("model", f"is unknown: {error.message}")
    if body.size not in (None, "", "auto") and not _SIZE.fullmatch(body.size or ""):
        yield FieldViolation("size", "must be 'auto' or pixels as in '512x512'")
    if body.stream and body.n not in (None, 1):
        yield FieldViolation("n", "must be 1 when the answer is streamed")
    if body.service_tier not in (None, "", *_TIERS):
        yield FieldViolation("service_tier", f"must be one of {', '.join(_TIERS)}")
    yield from _forms(body)
    for ours, theirs in _OTHER_NAMES.items():
        one, other = getattr(body, ours), getattr(body, theirs)
        if None not in (one, other) and one != other:
            yield FieldViolation(theirs, f"is {other}, and {ours} is {one}; name one of them")


def _forms(body: ImagesRequest) -> Iterator[FieldViolation]:
    """What is wrong with how the pictures are to be answered."""
    if body.response_format not in (None, "", "b64_json", "url"):
        yield FieldViolation("response_format", "must be 'b64_json' or 'url'")
    elif body.response_format == "url" and body.stream:
        yield FieldViolation("response_format", "must be 'b64_json' when the answer is streamed")
    elif body.wants_urls and not get_settings().url_ttl:
        reason = "must be 'b64_json'; this server gives no URLs out (T2I_URL_TTL)"
        yield FieldViolation("response_format", reason)
    if body.output_format not in (None, "", *_FORMATS):
        yield FieldViolation("output_format", f"must be one of {', '.join(_FORMATS)}")
    if not 0 <= _either(body.output_compression, 0) <= MAX_QUALITY:
        reason = f"is {body.output_compression}; it must be between 0 and {MAX_QUALITY}"
        yield FieldViolation("output_compression", reason)
    if body.background == "transparent":
        reason = "must be 'opaque' or 'auto'; no model here draws transparent pictures"
        yield FieldViolation("background", reason)
    elif body.background not in (None, "", "auto", "opaque"):
        yield FieldViolation("background", "must be 'opaque' or 'auto'")


def _either(one: T | None, other: T) -> T:
    return other if one is None else one


def _sides(size: str | None) -> tuple[int | None, int | None]:
    match = _SIZE.fullmatch(size or "")
    return (int(match[1]), int(match[2])) if match else (None, None)


def _quality(named: str | None) -> str | None:
    """Our own words; OpenAI's, as `auto` and `hd`, say nothing of how a picture is drawn here."""
    return named if named in tuple(Quality) else None
