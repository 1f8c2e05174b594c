"""Fields that both HTTP dialects have, as pydantic reads them and as the description of the API shows them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from text2image.api.forms import decoded
from text2image.core import controls, loras, validation
from text2image.core.messages import Control as ControlNet
from text2image.core.messages import LoraWeight, Quality, Sampler, Schedule


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# As JSON has it, 20.0 is an integer; languages without integers of their own write it so.
Integer = Annotated[int, BeforeValidator(_whole)]


def documented(**limits: Any) -> Any:
    """An optional field whose limits stand in the schema; they are checked where every transport's are."""
    return Field(None, json_schema_extra=limits)


TEXT: dict[str, Any] = {"maxLength": validation.MAX_PROMPT_CHARS}
# Something that is not blank, as Python and most readers of patterns see it.
PROMPT: dict[str, Any] = {"minLength": 1, "pattern": r"[^\s\x1c-\x1f\x85]", **TEXT}
# Fields that both dialects have.
NEGATIVE_PROMPT = documented(description="What the picture should not show.", **TEXT)
STEPS = documented(minimum=1, maximum=validation.MAX_STEPS)
GUIDANCE_SCALE = documented(minimum=0, maximum=validation.MAX_GUIDANCE)
SEED = documented(
    description="Picture i of n is drawn from seed + i.", minimum=0, maximum=validation.MAX_SEED
)
N = documented(description="Pictures.", minimum=1, maximum=validation.MAX_IMAGES, default=1)
SAMPLER = documented(
    description=f"One of {', '.join(Sampler)}, as far as the model can be drawn with it; the names that A1111, "
    "diffusers and ComfyUI give them do too, and a schedule may follow, as in `DPM++ 2M Karras`.",
    examples=[Sampler.EULER_ANCESTRAL.value],
)
SCHEDULE = documented(
    description=f"How noise levels are spread over the steps: one of {', '.join(Schedule)}, as far as the sampler can "
    "be drawn with it; the model's own way if left out.",
    examples=[Schedule.KARRAS.value],
)
MODEL = documented(
    description="A model as GET /v1/models names it; the default one if left out.",
    examples=["embedded"],
)
CLIP_SKIP = documented(
    description="Layer of the text encoder that prompts are taken from, where 1 is the last, as A1111 counts; 0 is the "
    "model's own. The model's default if left out.",
    minimum=0,
)
IMAGE = documented(
    description="A picture to begin from: a PNG, JPEG or WebP file as base64. Without width and height it is drawn in "
    "its own size, or the nearest that the model draws; it is scaled until it covers that size, and cut to it evenly. "
    "What is transparent is drawn anew, unless there is a mask.",
    contentEncoding="base64",
)
STRENGTH = documented(
    description=f"How much of the image is to change: the share of the steps that are taken. {validation.STRENGTH} if "
    f"left out, and {validation.MASK_STRENGTH:g} with a mask.",
    minimum=0,
    maximum=1,
)
HIRES_SCALE = documented(
    description="Enlarge the pictures by this, of a side, and draw on from there: small ones are composed better.",
    exclusiveMinimum=1,
    maximum=validation.MAX_HIRES_SCALE,
)
HIRES_STRENGTH = documented(
    description=f"How much of the enlarged picture is to change; {validation.HIRES_STRENGTH} if left out.",
    minimum=0,
    maximum=1,
)
HIRES_STEPS = documented(
    description="Of which the strength takes its share; as many as `steps` if left out.",
    minimum=1,
    maximum=validation.MAX_STEPS,
)
HIRES_UPSCALER = documented(
    description="What enlarges them: `Lanczos`, which it is if left out, or the name of an upscaler.",
)
FILE: dict[str, Any] = {"contentMediaType": "application/octet-stream"}
MASK = documented(
    description="What of the image is drawn anew: a file of its size, white there and black elsewhere.",
    contentEncoding="base64",
)
QUALITY = documented(
    description="Whether to draw as the model does to the last step, or to leave out work that changes little; the "
    "server's own choice if left out.",
    enum=[*(quality.value for quality in Quality), None],
    examples=[Quality.FAST.value],
)


class Control(BaseModel):
    """A ControlNet, and the picture that it steers by."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(description="As GET /v1/models names it.", examples=["canny"])
    image: str = Field(
        description="The control picture, a PNG, JPEG or WebP file as base64, which is scaled until it covers the size "
        "that is drawn, and cut to it evenly.",
        json_schema_extra={"contentEncoding": "base64"},
    )
    scale: float = Field(
        1.0,
        description="How much it steers.",
        json_schema_extra={"minimum": 0, "maximum": controls.MAX_SCALE},
    )
    start: float = Field(
        0.0,
        description="From where in the drawing it steers, 0 to 1.",
        json_schema_extra={"minimum": 0, "exclusiveMaximum": 1},
    )
    end: float = Field(
        1.0,
        description="To where.",
        json_schema_extra={"exclusiveMinimum": 0, "maximum": 1},
    )
    preprocess: str | None = Field(
        None,
        description=f"What makes a control picture of the image: `{controls.CANNY}` its edges, `{controls.INPAINT}` a "
        "hole where it is transparent; if left out, it is one.",
        json_schema_extra={"enum": [*controls.PREPROCESSORS, None]},
    )
    hash: str | None = Field(
        None,
        description="The net that must be meant, as GET /v1/models tells; whatever has the name if left out.",
    )


CONTROLS = documented(
    description="ControlNets that steer the picture; what several add is summed.",
    maxItems=controls.MAX_CONTROLS,
)


class Lora(BaseModel):
    """An adapter that the picture is drawn with."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(description="As GET /v1/models names it.", examples=["ink"])
    weight: float = Field(
        1.0,
        description="How much of it.",
        json_schema_extra={"minimum": -loras.MAX_WEIGHT, "maximum": loras.MAX_WEIGHT},
    )
    hash: str | None = Field(
        None,
        description="The file that must be meant, as GET /v1/models tells; whatever has the name if left out.",
    )


LORAS = documented(
    description="Adapters; the weights of one that is named twice add up.", maxItems=loras.MAX_LORAS
)


def weights_of(named: list[Lora] | None) -> tuple[LoraWeight, ...] | None:
    """The adapters in our words."""
    if named is None:
        return None
    return tuple(LoraWeight(each.name, each.weight, each.hash or "") for each in named)


def controls_of(named: list[Control] | None) -> tuple[ControlNet, ...] | None:
    """The controls in our words.

    Raises:
        InvalidRequest: a picture is no base64.
    """
    if named is None:
        return None
    return tuple(
        ControlNet(
            each.name,
            decoded("controls", each.image),
            each.scale,
            each.start,
            each.end,
            each.preprocess or "",
            each.hash or "",
        )
        for each in named
    )
