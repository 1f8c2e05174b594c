"""What a served model can do, and how it is."""

from __future__ import annotations

from dataclasses import dataclass

from text2image.core.messages.names import (
    Input,
    ModelState,
    PromptSyntax,
    Quality,
    Sampler,
    Schedule,
)

# Pixels that a side of a picture is a multiple of, at least: what a latent pixel stands for in most models.
SIDE_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class LoraInfo:
    """An adapter's file that a model has, named after it without suffix.

    Attributes:
        hash: the first digits of the file's SHA-256, as Civitai's AutoV2 has it.
        base: the family that it was made for, as its metadata or else its shapes tell.
        trigger_words: what its metadata says of words that call for it, the most frequent first.
        fault: why this model cannot be drawn with it; empty if it can.
    """

    name: str
    hash: str
    base: str = ""
    trigger_words: tuple[str, ...] = ()
    fault: str = ""


@dataclass(frozen=True, slots=True)
class ControlInfo:
    """A ControlNet that a model has, named after its folder, or its file without suffix.

    Attributes:
        hash: the first digits of a SHA-256 of its size and of parts of its weights.
        base: the family that it was made for, as its shapes tell.
        fault: why this model cannot be steered by it; empty if it can.
    """

    name: str
    hash: str
    base: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class UpscalerInfo:
    """A network that enlarges pictures, named after its file without suffix.

    Attributes:
        hash: the first digits of the file's SHA-256.
        scale: what it enlarges a side by.
        tile: pixels of the side of what it enlarges in one pass.
    """

    name: str
    hash: str
    scale: int
    tile: int


@dataclass(frozen=True, slots=True)
class Embedding:
    """A textual inversion that prompts may name: a word that a file teaches the model.

    Attributes:
        hash: of the file.
        vectors: tokens that it takes.
    """

    name: str
    hash: str
    vectors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a served model can do, and the defaults of what a request leaves out.

    Sides are in pixels; `max_prompt_tokens` is all that is read of a prompt, in chunks, with one start and end mark.
    `schedules` are those that some sampler can be drawn with beside the model's own; `max_steps` names samplers that
    take fewer steps than others, and how many. `fast` tells what a fast picture leaves out, and is empty where that is
    nothing. Sides are multiples of `side_multiple`: what a latent pixel stands for, where that is more than 8.
    `aliases` are other names that requests may give it, `licence` is what its owner says of it, and `price` what its
    pixel-steps count against limits. `embeddings` are what prompts may name, and `prompt_syntax` how they are read.
    `clip_skip` is the default of requests, 0 for the model's own layer, and `max_clip_skip` the most they may ask for,
    0 where nothing is taken. `inputs` are what a request may give it. `loras` are the adapters in its folder, and
    `controls` its ControlNets, those that it cannot be drawn with among them. `upscalers` may enlarge what it draws on
    from, and `upscale` is what it enlarges a side by itself, in place of drawing; 0 for models that draw.
    `quantization` is what its weights are in where that is fewer bits than `dtype` has, as "int8"; pictures of more
    pixels than `tiled_above` are decoded in tiles, none if it is 0.
    """

    id: str
    revision: str
    family: str
    width: int
    height: int
    min_side: int
    max_side: int
    steps: int
    guidance_scale: float
    sampler: Sampler
    samplers: tuple[Sampler, ...]
    max_prompt_tokens: int
    device: str
    dtype: str
    schedules: tuple[Schedule, ...] = ()
    max_steps: tuple[tuple[Sampler, int], ...] = ()
    quality: Quality = Quality.EXACT
    fast: str = ""
    aliases: tuple[str, ...] = ()
    licence: str = ""
    price: float = 1.0
    side_multiple: int = SIDE_MULTIPLE
    loras: tuple[LoraInfo, ...] = ()
    controls: tuple[ControlInfo, ...] = ()
    inputs: tuple[Input, ...] = (Input.TEXT,)
    embeddings: tuple[Embedding, ...] = ()
    clip_skip: int = 0
    max_clip_skip: int = 0
    prompt_syntax: PromptSyntax = PromptSyntax.PLAIN
    quantization: str = ""
    tiled_above: int = 0
    upscalers: tuple[UpscalerInfo, ...] = ()
    upscale: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """How a model of an engine's catalogue is.

    `detail` says what is being loaded, or why that failed; `seconds` is the predicted time until it is loaded if it is
    asked for now, 0 if it is, and None where that is not known. `offers` changes with the adapters and ControlNets
    that it has; of both `adapters` are in memory, and `waiting_adapters` are being read.
    """

    name: str
    revision: str
    state: ModelState
    detail: str = ""
    seconds: float | None = 0.0
    offers: str = ""
    adapters: tuple[str, ...] = ()
    waiting_adapters: tuple[str, ...] = ()
