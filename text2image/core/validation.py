"""From what a client wrote to a request with nothing left open, or to an error that names every bad field."""

from __future__ import annotations

import math
import secrets
from dataclasses import replace
from typing import Any, TypeVar

from text2image.core import controls, loras, prompt_syntax, upscalers
from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.init_image import InitImage
from text2image.core.messages import (
    Control,
    Input,
    LoraWeight,
    ModelInfo,
    PromptSyntax,
    Quality,
    Request,
    RequestParams,
    Sampler,
    Schedule,
    steps_drawn,
)
from text2image.core.samplers import (
    SCHEDULES_OF,
    is_own_schedule,
    sampler_of,
    schedule_of,
    split_schedule,
)

MAX_PROMPT_CHARS = 4000
MAX_STEPS = 150
MAX_GUIDANCE = 30.0
MAX_IMAGES = 10
MAX_SEED = 2**63 - 1
# How much of a picture is to change where a request does not say, and of what its mask marks.
STRENGTH = 0.8
MASK_STRENGTH = 1.0
# The same of a picture that was enlarged, and by how much it may be.
HIRES_STRENGTH = 0.5
MAX_HIRES_SCALE = 4.0
# Seeds that we pick ourselves stay short enough to be typed again and exact in JSON readers that use doubles.
RANDOM_SEED_BITS = 32

T = TypeVar("T")


def compose_prompt(text: str, context: str | None) -> str:
    """The prompt of the contracts that split it: `text`, followed by `, context` if there is one.

    A blank text stays blank, so that it is refused: a context alone is nothing to draw.
    """
    return f"{text}, {context}" if text.strip() and context and context.strip() else text


def check_context(text: str, context: str | None) -> None:
    """Checks a context before it becomes part of a prompt, whose name it would be blamed under.

    Raises:
        InvalidRequest: it is no part of a prompt, or too long for one with this text.
    """
    checks = _Checks()
    context = checks.text("context", context or "")
    length = len(compose_prompt(text, context))
    if not checks.violations and len(text) <= MAX_PROMPT_CHARS < length:
        reason = f"makes {length} characters with the text; at most {MAX_PROMPT_CHARS} are read"
        checks.refuse("context", reason)
    if checks.violations:
        raise InvalidRequest(*checks.violations)


def resolve(params: RequestParams, model: ModelInfo) -> Request:
    """Checks what a client wrote, and fills what it left out; a missing seed is drawn at random.

    `model` is the one that was named, or the default.

    Raises:
        InvalidRequest: with one violation for each bad field.
    """
    checks = _Checks()
    named = _or(params.sampler, model.sampler.value)
    sampler, ending = checks.sampler(named, model)
    request = Request(
        # A picture says what to draw, too.
        prompt=checks.prompt("prompt", params.prompt, model, required=params.image is None),
        negative_prompt=checks.prompt("negative_prompt", params.negative_prompt or "", model),
        width=checks.side("width", _or(params.width, model.width), model),
        height=checks.side("height", _or(params.height, model.height), model),
        steps=checks.steps(_or(params.steps, model.steps), sampler, model),
        guidance_scale=checks.guidance(_or(params.guidance_scale, model.guidance_scale)),
        seed=checks.integer(
            "seed", _or(params.seed, secrets.randbits(RANDOM_SEED_BITS)), 0, MAX_SEED
        ),
        n=checks.integer("n", _or(params.n, 1), 1, MAX_IMAGES),
        sampler=sampler,
        schedule=checks.schedule(params.schedule, ending, sampler, model),
        quality=checks.quality(params.quality, model),
        model=model.id,
        loras=checks.loras(params.loras, model),
        **checks.beginning(params, model),
        controls=checks.controls(params.controls, model),
        clip_skip=checks.clip_skip(_or(params.clip_skip, model.clip_skip), model),
    )
    request = checks.enlarged(request, params, model)
    checks.steps_drawn("strength", request.strength, request.steps, sampler)
    if checks.violations:
        raise InvalidRequest(*checks.violations)
    return request


def check_size(params: RequestParams, model: ModelInfo) -> None:
    """Checks the sides that a client named, before anything is made that large.

    Raises:
        InvalidRequest: the model does not draw them.
    """
    checks = _Checks()
    for name, value in (("width", params.width), ("height", params.height)):
        if value is not None:
            checks.side(name, value, model)
    if checks.violations:
        raise InvalidRequest(*checks.violations)


def check_inputs(params: RequestParams, model: ModelInfo) -> None:
    """Checks whether a picture and a mask may be given at all, before they are read.

    Raises:
        InvalidRequest: there is a mask or a strength without a picture, or the model draws from no such thing.
    """
    checks = _Checks()
    checks.inputs(params, model)
    if checks.violations:
        raise InvalidRequest(*checks.violations)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Checks:
    """Collects violations, so that one answer names them all."""

    def __init__(self) -> None:
        self.violations: list[FieldViolation] = []

    def refuse(self, field: str, reason: str) -> None:
        self.violations.append(FieldViolation(field, reason))

    def text(self, field: str, value: str, *, required: bool = False) -> str:
        if required and not value.strip():
            self.refuse(field, "is empty; say what to draw")
        elif len(value) > MAX_PROMPT_CHARS:
            self.refuse(field, f"has {len(value)} characters; at most {MAX_PROMPT_CHARS} are read")
        elif not _is_unicode(value):
            self.refuse(field, "is not valid Unicode text: it holds a lone surrogate")
        return value

    def prompt(self, field: str, value: str, model: ModelInfo, *, required: bool = False) -> str:
        before = len(self.violations)
        self.text(field, value, required=required)
        if len(self.violations) > before or model.prompt_syntax is not PromptSyntax.A1111:
            return value
        if (weight := prompt_syntax.too_heavy(value)) is not None:
            self.refuse(
                field,
                f"has a word that weighs {weight:.4g}, as its brackets multiply; at most "
                f"{prompt_syntax.MAX_WEIGHT:g} either way",
            )
        names = [embedding.name for embedding in model.embeddings]
        if names and (unknown := prompt_syntax.unknown(value, names)):
            self.refuse(
                field,
                f"names the embedding {unknown[:40]!r}; {model.id} has {_listed(names)}",
            )
        return value

    def clip_skip(self, value: int, model: ModelInfo) -> int:
        if value and not model.max_clip_skip:
            self.refuse("clip_skip", f"is {value}; {model.id} takes none, leave it out")
            return value
        return self.integer("clip_skip", value, 0, model.max_clip_skip)

    def integer(self, field: str, value: int, low: int, high: int) -> int:
        if not low <= value <= high:
            self.refuse(field, f"is {value}; it must be between {low} and {high}")
        return value

    def side(self, field: str, value: int, model: ModelInfo) -> int:
        if not model.min_side <= value <= model.max_side:
            self.refuse(
                field,
                f"is {value} pixels; {model.id} draws between {model.min_side} and {model.max_side}",
            )
        elif value % model.side_multiple:
            self.refuse(field, f"is {value} pixels; it must be a multiple of {model.side_multiple}")
        return value

    def guidance(self, value: float) -> float:
        # Written this way round so that NaN is refused too.
        if not (math.isfinite(value) and 0 <= value <= MAX_GUIDANCE):
            self.refuse("guidance_scale", f"is {value}; it must be between 0 and {MAX_GUIDANCE:g}")
        return value

    def steps(self, value: int, sampler: Sampler, model: ModelInfo) -> int:
        most = dict(model.max_steps).get(sampler, MAX_STEPS)
        if most < value <= MAX_STEPS:
            self.refuse("steps", f"is {value}; with {sampler} it must be at most {most}")
            return value
        return self.integer("steps", value, 1, MAX_STEPS)

    def sampler(self, value: str, model: ModelInfo) -> tuple[Sampler, str]:
        """The sampler, and the schedule that its name ends in, as it is written."""
        if value == model.sampler.value and model.sampler in model.samplers:
            return model.sampler, ""
        # A runner of a later version may know one that has no other names here.
        named = {sampler.value.lower(): sampler for sampler in model.samplers}
        sampler, ending = named.get(value.lower()) or sampler_of(value), ""
        if sampler is None:
            sampler, ending = split_schedule(value) or (None, "")
        if sampler in model.samplers:
            return sampler, ending
        self.refuse("sampler", f"is {value[:40]!r}; it must be one of {', '.join(model.samplers)}")
        return model.sampler, ""

    def schedule(
        self, value: str | None, ending: str, sampler: Sampler, model: ModelInfo
    ) -> Schedule | None:
        """The schedule of a request: as its own field names it, or else the ending of its sampler's name."""
        value = value if value and value.strip() else None
        if value is None and not ending:
            return None
        field, asked = ("sampler", ending) if value is None else ("schedule", value)
        later = {schedule.value.lower(): schedule for schedule in model.schedules}
        schedule = schedule_of(asked) or later.get(asked.lower())
        if value is not None and ending and schedule_of(ending) is not schedule:
            self.refuse("schedule", f"is {value[:40]!r}, and the sampler's name ends in {ending}")
        elif is_own_schedule(asked):
            return None
        elif schedule not in _schedules(sampler, model):
            # Drawing it all the same would give another picture without a word.
            self.refuse(field, _no_schedule(asked, sampler, model))
        return schedule

    def inputs(self, params: RequestParams, model: ModelInfo) -> None:
        given = {Input.IMAGE: params.image, Input.MASK: params.mask, "strength": params.strength}
        if params.image is None:
            for name, value in given.items():
                if value is not None:
                    self.refuse(name, "is of no use without an image to begin from")
            return
        for name in (Input.IMAGE, Input.MASK):
            if given[name] is not None and name not in model.inputs:
                drawn = " and an ".join(model.inputs) if len(model.inputs) > 1 else "a text alone"
                self.refuse(name, f"is not taken: {model.id} draws from {drawn}")

    def beginning(self, params: RequestParams, model: ModelInfo) -> dict[str, Any]:
        """What a request begins from, and how much of that is to change."""
        self.inputs(params, model)
        image = params.image
        if image is None:
            return {}
        if not isinstance(image, InitImage):
            self.refuse("image", "is a file, and those are read by gateways alone")
            return {}
        default = STRENGTH if image.mask is None else MASK_STRENGTH
        return {
            "image": image,
            "strength": self.strength("strength", _or(params.strength, default)),
        }

    def enlarged(self, request: Request, params: RequestParams, model: ModelInfo) -> Request:
        """The request with what it says of a second pass, if it asks for one."""
        scale, steps = params.hires_scale, _or(params.hires_steps, request.steps)
        if scale is None:
            for name in ("hires_strength", "hires_steps", "hires_upscaler"):
                if getattr(params, name) is not None:
                    self.refuse(name, "is of no use without hires_scale")
            return request
        if not (math.isfinite(scale) and 1 < scale <= MAX_HIRES_SCALE):
            reason = f"is {scale}; it must be above 1 and at most {MAX_HIRES_SCALE:g}"
            self.refuse("hires_scale", reason)
            return request
        if request.image is not None or Input.IMAGE not in model.inputs:
            reason = "goes with a text alone" if request.image else "is not for this model"
            self.refuse("hires_scale", f"{reason}; {model.id} draws from {', '.join(model.inputs)}")
        strength = self.strength("hires_strength", _or(params.hires_strength, HIRES_STRENGTH))
        self.integer("hires_steps", steps, 1, MAX_STEPS)
        self.steps_drawn("hires_strength", strength, steps, request.sampler)
        enlarged = replace(
            request,
            hires_scale=float(scale),
            hires_strength=strength,
            hires_steps=steps,
            hires_upscaler=self.upscaler(params.hires_upscaler, model),
        )
        width, height = enlarged.final_size
        if max(width, height) > model.max_side or any(
            side % model.side_multiple for side in (width, height)
        ):
            self.refuse(
                "hires_scale",
                f"is {scale:g}, which makes {width}x{height} pixels; {model.id} draws sides of at most "
                f"{model.max_side} pixels that are multiples of {model.side_multiple}",
            )
        return enlarged

    def upscaler(self, named: str | None, model: ModelInfo) -> str | None:
        try:
            return upscalers.chosen("hires_upscaler", named, model.upscalers)
        except InvalidRequest as error:
            self.violations += error.violations
            return None

    def strength(self, field: str, value: float) -> float:
        if math.isfinite(value) and 0 <= value <= 1:
            return float(value)
        self.refuse(field, f"is {value}; it must be between 0 and 1")
        return 1.0

    def steps_drawn(self, field: str, strength: float | None, steps: int, sampler: Sampler) -> None:
        if strength is not None and steps > 0 and not steps_drawn(steps, strength, sampler):
            least = 0.001 if steps_drawn(steps, 0.001, sampler) else math.ceil(1000 / steps) / 1000
            self.refuse(
                field,
                f"is {strength:g}, and of {steps} steps that leaves none; with so many it must be at least "
                f"{least:g}",
            )

    def quality(self, value: str | None, model: ModelInfo) -> Quality:
        """How a picture is drawn; exactly, where the model has nothing to leave out."""
        quality: Quality | None = model.quality
        if value is not None:
            # One that only a runner of a later version knows means what it says to that runner.
            known = {each.value: each for each in (*Quality, model.quality)}
            quality = known.get(value.lower())
        if quality is None:
            self.refuse(
                "quality", f"is {str(value)[:40]!r}; it must be one of {', '.join(Quality)}"
            )
            return model.quality
        return Quality.EXACT if quality is Quality.FAST and not model.fast else quality

    def loras(
        self, named: tuple[LoraWeight, ...] | None, model: ModelInfo
    ) -> tuple[LoraWeight, ...]:
        try:
            return loras.chosen(named, model)
        except InvalidRequest as error:
            self.violations += error.violations
            return ()

    def controls(self, named: tuple[Control, ...] | None, model: ModelInfo) -> tuple[Control, ...]:
        try:
            return controls.chosen(named, model)
        except InvalidRequest as error:
            self.violations += error.violations
            return ()


def _listed(names: list[str], most: int = 20) -> str:
    """Names as an error tells them, not all of hundreds."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _schedules(sampler: Sampler, model: ModelInfo) -> tuple[Schedule, ...]:
    """What a sampler can be drawn with beside the model's own schedule; all, where only later versions know that."""
    fitting = SCHEDULES_OF.get(sampler, model.schedules)
    known = tuple(Schedule)
    return tuple(each for each in model.schedules if each in fitting or each not in known)


def _no_schedule(asked: str, sampler: Sampler, model: ModelInfo) -> str:
    fitting = _schedules(sampler, model)
    there = f"must be one of {', '.join(fitting)}, or left out" if fitting else "must be left out"
    return f"asks for the schedule {asked[:40]!r}; with {sampler} it {there} for that of the model"
