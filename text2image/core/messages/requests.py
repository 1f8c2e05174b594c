"""What is asked for: as a client wrote it, and with nothing left open."""

from __future__ import annotations

from dataclasses import dataclass, field

from text2image.core.init_image import InitImage
from text2image.core.messages.models import SIDE_MULTIPLE
from text2image.core.messages.names import Quality, Sampler, Schedule

_FLOWS = (Sampler.FLOW_EULER, Sampler.FLOW_HEUN)


def steps_drawn(steps: int, strength: float, sampler: Sampler) -> int:
    """Of so many steps those that a picture takes which begins from another, the last ones.

    As `get_timesteps` in diffusers' `pipeline_stable_diffusion_img2img` has it, and for flows that in
    `pipeline_stable_diffusion_3_img2img`: the one cuts off a part of a step, the other takes it whole.
    """
    share = min(steps * strength, steps)
    return steps - int(max(steps - share, 0)) if sampler in _FLOWS else int(share)


@dataclass(frozen=True, slots=True)
class LoraWeight:
    """An adapter that a picture is drawn with: the layers' low-rank changes (Hu et al. 2021) times `weight`.

    `hash` names the file's content as `LoraInfo` does; empty, whatever has the name.
    """

    name: str
    weight: float = 1.0
    hash: str = ""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestParams:
    """A request as a client wrote it: None stands for the model's default.

    Attributes:
        image, mask: files as they came, of which a gateway makes an `InitImage` that holds both.
        mask_by_alpha: whether the mask's transparent part is what is drawn anew, and not its white one.
        mask_inverted: whether what the mask does not mark is drawn anew.
        stretched: whether the image is scaled to the size that is drawn without regard to its proportions.
        mask_blur: standard deviations across and down, in pixels, of a mask's soft edge; what is not masked stays as it
            is then, to the pixel. None: masks are hard, and all of the picture is decoded anew.
        mask_padding: pixels around what is masked that are drawn with it, and all else is not; None draws all of it. It
            goes with a `mask_blur`.
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
    mask_blur: tuple[int, int] | None = None
    mask_padding: int | None = None
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
    hires_upscaler: str | None = None

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

        See `steps_drawn`.
        """
        if self.strength is None:
            return self.steps
        return steps_drawn(self.steps, self.strength, self.sampler)

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
    """Whose work a request counts as, and how much of the device its owner gets against others who wait too.

    Work in the background has what nobody else can use, and its owner's share against others in the background.
    """

    owner: str = ""
    weight: int = 1
    background: bool = False
