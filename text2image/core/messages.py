"""The nouns of the service: what is asked for, what happens on the way, and what comes back.

Frozen and typed; nothing here knows of torch or of a transport.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from os import PathLike
from pathlib import Path
from typing import Self

from text2image.core.init_image import InitImage

# Pixels that a side of a picture is a multiple of, at least: what a latent pixel stands for in most models.
SIDE_MULTIPLE = 8


class _Open(StrEnum):
    """Names of which later versions may know more."""

    @classmethod
    def named(cls, name: str) -> Self:
        """The member of this name: one that only later versions know is its name and nothing more."""
        known = {member.value: member for member in cls}
        if name in known:
            return known[name]
        later = str.__new__(cls, name)
        later._name_ = later._value_ = name
        return later


class Sampler(_Open):
    """How the denoising trajectory is integrated, by the names that people use."""

    DPMPP_2M = "dpm++ 2m"
    DPMPP_2M_SDE = "dpm++ 2m sde"
    DPMPP_3M = "dpm++ 3m"
    DPMPP_3M_SDE = "dpm++ 3m sde"
    EULER = "euler"
    EULER_ANCESTRAL = "euler ancestral"
    HEUN = "heun"
    DPM2 = "dpm2"
    DPM2_ANCESTRAL = "dpm2 ancestral"
    LMS = "lms"
    PNDM = "pndm"
    DDIM = "ddim"
    DDPM = "ddpm"
    UNIPC = "unipc"
    DEIS = "deis"
    LCM = "lcm"
    TCD = "tcd"
    FLOW_EULER = "flow euler"
    FLOW_HEUN = "flow heun"


class Schedule(_Open):
    """How noise levels are spread over the steps, where it is not as the model's own configuration has it."""

    KARRAS = "karras"
    EXPONENTIAL = "exponential"
    BETA = "beta"
    LU = "lu"


class Quality(_Open):
    """Whether a picture is the model's own to the last step, or may be approximated for less work."""

    EXACT = "exact"
    FAST = "fast"


@dataclass(frozen=True, slots=True)
class LoraWeight:
    """An adapter that a picture is drawn with: the layers' low-rank changes (Hu et al. 2021) times `weight`.

    `hash` names the file's content as `LoraInfo` does; empty, whatever has the name.
    """

    name: str
    weight: float = 1.0
    hash: str = ""


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
class Control:
    """A ControlNet (Zhang et al. 2023) that steers a picture by another one, its control picture.

    Attributes:
        image: a file as it came, of which a gateway makes an `InitImage` of the size that is drawn; None where it has
            yet to be added. The mask of one is what a net for inpainting is told to draw.
        scale: times which the net's output is added.
        start, end: the part of the drawing that it steers, from 0 to 1.
        preprocess: what makes the control picture of the image; empty, it is one.
        hash: names the net's file as `ControlInfo` does; empty, whatever has the name.
    """

    name: str
    image: bytes | InitImage | None = field(default=None, repr=False)
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    preprocess: str = ""
    hash: str = ""


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


class PromptSyntax(_Open):
    """What characters of a prompt may mean besides themselves: nothing, or what they do in A1111's web UI."""

    PLAIN = "plain"
    A1111 = "a1111"


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


class Input(_Open):
    """What a model draws from beside a text alone: a picture to begin with, and a mask of what to draw anew in it."""

    TEXT = "text"
    IMAGE = "image"
    MASK = "mask"


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
    `controls` its ControlNets, those that it cannot be drawn with among them.
    `upscale` is what it enlarges the sides of a picture by, in place of drawing; 0 for models that draw.
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
    upscale: int = 0


class ModelState(_Open):
    """Whether a model of a catalogue can be drawn with at once."""

    IDLE = "idle"
    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestParams:
    """A request as a client wrote it: None stands for the model's default.

    Attributes:
        image, mask: files as they came, of which a gateway makes an `InitImage` that holds both.
        mask_by_alpha: whether the mask's transparent part is what is drawn anew, and not its white one.
        mask_inverted: whether what the mask does not mark is drawn anew.
        stretched: whether the image is scaled to the size that is drawn without regard to its proportions.
    """

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    n: int | None = None
    sampler: str | None = None
    schedule: str | None = None
    quality: str | None = None
    model: str | None = None
    loras: tuple[LoraWeight, ...] | None = None
    image: bytes | InitImage | None = field(default=None, repr=False)
    strength: float | None = None
    mask: bytes | None = field(default=None, repr=False)
    mask_by_alpha: bool = False
    mask_inverted: bool | None = None
    stretched: bool | None = None
    controls: tuple[Control, ...] | None = None
    clip_skip: int | None = None
    hires_scale: float | None = None
    hires_strength: float | None = None
    hires_steps: int | None = None
    hires_upscaler: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A valid request with nothing left open: equal requests to the same model give equal pictures.

    Sides are in pixels. Picture i of n is drawn from `seed_of(i)`, so each can be drawn again alone. Without a
    `schedule` noise levels are those of the model's own configuration. What a fast one leaves out the model says.
    `model` is the name of one of a catalogue; empty, it is the default one. With an `image` drawing begins from that,
    with as much noise as the `strength` says, 0 to 1; without one there is no strength either. `clip_skip` is the
    layer of the text encoder that prompts are taken from, counted from the last, which is 1; 0 is the one that the
    model was made with. With a `hires_scale` its pictures are enlarged, by that of a side, and drawn on from there in
    so many steps and with that strength; a `hires_upscaler`, by name and hash, enlarges them, or else Lanczos' filter.
    `loras` are ordered by their names, each
    once, with its hash; `controls` steer it, each by a picture of its size, and their outputs are added in their order.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    n: int
    sampler: Sampler
    schedule: Schedule | None = None
    quality: Quality = Quality.EXACT
    model: str = ""
    loras: tuple[LoraWeight, ...] = ()
    image: InitImage | None = None
    strength: float | None = None
    controls: tuple[Control, ...] = ()
    clip_skip: int = 0
    hires_scale: float | None = None
    hires_strength: float | None = None
    hires_steps: int | None = None
    hires_upscaler: str = ""

    @property
    def final_size(self) -> tuple[int, int]:
        """Width and height of the finished picture."""
        scale = self.hires_scale or 1.0
        width, height = (
            round(side * scale / SIDE_MULTIPLE) * SIDE_MULTIPLE
            for side in (self.width, self.height)
        )
        return width, height

    @property
    def steps_drawn(self) -> int:
        """Steps that are taken: of a picture that begins from another the last ones, as many as the strength's share.

        As `get_timesteps` in diffusers' `pipeline_stable_diffusion_img2img` has it.
        """
        return (
            self.steps
            if self.strength is None
            else min(self.steps, int(self.steps * self.strength))
        )

    def seed_of(self, index: int) -> int:
        """Seed of one picture; wraps at 2^63 so that every seed stays a valid one to ask for."""
        return (self.seed + index) % 2**63


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What to report on the way: every so many steps a `Progress`, and in it a preview; 0 is never."""

    progress_every: int = 0
    preview_every: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """Whose work a request counts as, and how much of the device its owner gets against others who wait too."""

    owner: str = ""
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture: 8 bit RGB, rows from the top, no padding; `len(rgb) == width * height * 3`."""

    width: int
    height: int
    rgb: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a picture's time went, in seconds; `encoding` is that of its prompt."""

    queued: float
    denoising: float
    decoding: float
    encoding: float = 0.0

    @property
    def total(self) -> float:
        """Seconds from its admission to its pixels, less those that it waited for its decoding."""
        return self.queued + self.encoding + self.denoising + self.decoding


@dataclass(frozen=True, slots=True)
class Loading:
    """The request waits for its model; `seconds` is the predicted time until that is loaded, None if unknown."""

    detail: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Queued:
    """The request is admitted and will end in pictures, an error or its cancellation."""

    predicted_seconds: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Picture `index` has done `step` of `steps` steps."""

    index: int
    step: int
    steps: int
    preview: Pixels | None = None


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """Picture `index` is finished."""

    index: int
    seed: int
    pixels: Pixels
    timings: Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A finished picture as a client gets it: PNG with its parameters inside.

    `path` is where the gateway saved it, empty if it did not; `seed` draws it again, alone. `cached` tells that it was
    drawn for an earlier request. `file` is the picture in the form that its client asked for, the PNG if that was none.
    """

    index: int
    seed: int
    width: int
    height: int
    png: bytes = field(repr=False)
    path: str
    timings: Timings
    cached: bool = False
    converted: bytes = field(default=b"", repr=False)

    @property
    def file(self) -> bytes:
        return self.converted or self.png

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the PNG file as it is, its parameters included."""
        Path(path).write_bytes(self.png)


@dataclass(frozen=True, slots=True)
class Completed:
    """All pictures are out. `truncated` is the end of the prompt that the text encoder did not read.

    `truncated_negative` is that of the negative prompt.
    """

    truncated: str = ""
    truncated_negative: str = ""

    @property
    def unread(self) -> list[tuple[str, str]]:
        """The ends of prompts that were not read, each with what people call that prompt."""
        ends = (("prompt", self.truncated), ("negative prompt", self.truncated_negative))
        return [(name, end) for name, end in ends if end]


# What an engine and its runner report, and what a gateway makes of it for its clients.
Event = Loading | Queued | Progress | GeneratedImage | Completed
ClientEvent = Loading | Queued | Progress | Picture | Completed


class State(Enum):
    """What an engine is doing; only a READY one admits requests."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What an engine has done since its process began; one request asks for one or more samples."""

    admitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    batches: int = 0
    sample_steps: int = 0
    steps_saved: int = 0
    retries: int = 0
    dropped: int = 0
    out_of_memory: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An engine's state and load; `backlog_seconds` is the predicted time until all admitted work is done.

    `pace` is the seconds that a million pixel-steps add to it, 0 where that is not known. `models` are those of its
    catalogue, the default one first; earlier versions tell of none. `waiting` are those of the active samples that have
    not taken their first step. `utilization` is the backlog as a share of the longest that is admitted.
    """

    state: State
    detail: str = ""
    backlog_seconds: float = 0.0
    active: int = 0
    counters: Counters = field(default_factory=Counters)
    pace: float = 0.0
    models: tuple[ModelStatus, ...] = ()
    waiting: int = 0
    utilization: float = 0.0
