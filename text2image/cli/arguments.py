"""From the command line to a request. What a request may be is said by `validation`, in the words of the server."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from text2image.core.controls import parse_control
from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.loras import parse_lora
from text2image.core.messages import (
    SIDE_MULTIPLE,
    Control,
    Input,
    LoraWeight,
    ModelInfo,
    Quality,
    RequestParams,
    Sampler,
    Schedule,
)
from text2image.core.settings import MAX_CLIP_SKIP, MAX_SIDE, get_settings
from text2image.core.validation import check_context, compose_prompt, resolve
from text2image.gateway.init_images import Limits, read

BAD_USAGE = 2

_SIZE = re.compile(r"(\d{1,9})[x×](\d{1,9})")
_NAMES = {
    name: "-n" if name == "n" else f"--{name.replace('_', '-')}"
    for name in (*RequestParams.__slots__, "context", "size", "output", "timeout")
    if name != "prompt"
} | {"loras": "--lora", "controls": "--control"}
# As wide as any model's limits, so that what none draws is refused before one is loaded or asked.
_ANY_MODEL = ModelInfo(
    id="a model",
    revision="",
    family="",
    width=512,
    height=512,
    min_side=SIDE_MULTIPLE,
    max_side=MAX_SIDE,
    steps=1,
    guidance_scale=1.0,
    sampler=Sampler.EULER,
    samplers=tuple(Sampler),
    schedules=tuple(Schedule),
    max_prompt_tokens=1,
    device="",
    dtype="",
    fast="a part",
    inputs=tuple(Input),
    max_clip_skip=MAX_CLIP_SKIP,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for.

    `title` is what files are named after; `timeout` is in seconds. `server` is None where the settings name it.
    """

    params: RequestParams
    title: str
    output: str | None
    server: str | None
    local: bool
    api_key: str | None = field(repr=False)
    timeout: float | None
    quiet: bool


def parse(arguments: Sequence[str]) -> Options:
    """The options of a command line.

    Raises:
        SystemExit: help was asked for, or an option is unknown or no number; the status says which.
        InvalidRequest: no server would draw this.
    """
    given = _parser().parse_args(arguments)
    text = " ".join(given.prompt)
    try:
        check_context(text, given.context)
        params = _params(given, text)
        check(params)
    except InvalidRequest as error:
        raise as_typed(error) from None
    return Options(
        params=params,
        title=f"{given.context or ''} {text}",
        output=given.output,
        server=given.server,
        local=given.local,
        api_key=given.api_key,
        timeout=given.timeout,
        quiet=given.quiet,
    )


def check(params: RequestParams) -> None:
    """Does nothing if some model may draw this; which adapters, ControlNets and upscalers there are only servers know.

    Raises:
        InvalidRequest: none does.
    """
    asked = replace(params, loras=None, controls=None)
    if asked.hires_scale is not None:
        asked = replace(asked, hires_upscaler=None)
    resolve(read(asked, _ANY_MODEL, Limits.of(get_settings())), _ANY_MODEL)


def as_typed(error: InvalidRequest) -> InvalidRequest:
    """The same error with the fields named as they are typed."""
    return error.renamed(_NAMES)


def _params(given: argparse.Namespace, text: str) -> RequestParams:
    width, height = given.width, given.height
    if given.size is not None:
        size = _SIZE.fullmatch(given.size)
        if width is not None or height is not None:
            raise _refused("size", "says the same as --width and --height; give one of both")
        if not size:
            raise _refused("size", f"is {given.size[:40]!r}; write width and height as in 512x512")
        width, height = int(size[1]), int(size[2])
    if given.timeout is not None and not (math.isfinite(given.timeout) and given.timeout > 0):
        raise _refused("timeout", f"is {given.timeout}; it must be a number of seconds above 0")
    return RequestParams(
        prompt=compose_prompt(text, given.context),
        negative_prompt=given.negative_prompt,
        width=width,
        height=height,
        steps=given.steps,
        guidance_scale=given.guidance_scale,
        seed=given.seed,
        n=given.n,
        sampler=given.sampler,
        schedule=given.schedule,
        quality=given.quality,
        model=given.model,
        loras=tuple(given.lora) if given.lora else None,
        image=_file("image", given.image),
        strength=given.strength,
        mask=_file("mask", given.mask),
        controls=tuple(_steered(*each) for each in given.control) if given.control else None,
        clip_skip=given.clip_skip,
        hires_scale=given.hires_scale,
        hires_strength=given.hires_strength,
        hires_steps=given.hires_steps,
        hires_upscaler=given.hires_upscaler,
    )


def _file(name: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _refused(name, f"{path}: {error.strerror}") from None


def _steered(control: Control, path: str) -> Control:
    return replace(control, image=_file("controls", path))


def _refused(name: str, reason: str) -> InvalidRequest:
    return InvalidRequest(FieldViolation(name, reason))


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_USAGE, f"text2image: {message.removeprefix('argument ')}; see --help\n")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _lora(text: str) -> LoraWeight:
    try:
        return parse_lora(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a name, or a name and a weight as in ink:0.8"
        ) from None


def _control(text: str) -> tuple[Control, str]:
    try:
        return parse_control(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a name and a file, as in canny=edges.png or canny=edges.png:0.8"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m text2image",
        description="Draws pictures from words and prints the path of each. The running server draws them if there is "
        "one, else this process does. What is left out takes the model's default.",
        epilog="The environment says the rest: T2I_SERVER, or HOST and GRPC_PORT, where the server listens, T2I_TLS_CA "
        "what vouches for it, T2I_MODEL and T2I_DEVICE what is drawn with in this process. "
        "`python -m text2image check MODEL` tells what is wrong with a model.",
        allow_abbrev=False,
    )
    picture = parser.add_argument_group("the picture")
    _add(picture, "prompt", "what to draw", nargs="*", metavar="PROMPT")
    _add(picture, "--context", "added to the prompt", metavar="WORDS")
    _add(picture, "--negative-prompt", "what the picture should not show", metavar="WORDS")
    _add(picture, "--width", "pixels", type=_whole)
    _add(picture, "--height", "pixels", type=_whole)
    _add(picture, "--size", "both at once, as in 512x512", metavar="WIDTHxHEIGHT")
    _add(picture, "--steps", "denoising steps", type=_whole)
    _add(picture, "--guidance-scale", "how closely to follow the prompt", type=_number)
    samplers = ", ".join(repr(sampler.value) for sampler in Sampler)
    _add(picture, "--sampler", f"one of {samplers}, as far as the model can be drawn with it")
    schedules = ", ".join(Schedule)
    _add(picture, "--schedule", f"how noise levels are spread over the steps: one of {schedules}")
    qualities = f"{Quality.EXACT}, or {Quality.FAST}, which leaves out work that changes little"
    _add(picture, "--quality", qualities)
    _add(picture, "--model", "one of the server's; T2I_MODEL in this process", metavar="NAME")
    adapter = "an adapter of the model, and how much of it, as in ink:0.8; may be given again"
    _add(picture, "--lora", adapter, type=_lora, action="append", metavar="NAME[:WEIGHT]")
    _add(picture, "--image", "picture to begin from: a PNG, JPEG or WebP file", metavar="FILE")
    _add(picture, "--strength", "how much of the image is to change, from 0 to 1", type=_number)
    mask = "picture of the image's size, white where that is to be drawn anew"
    _add(picture, "--mask", mask, metavar="FILE")
    _add(
        picture,
        "--control",
        "a ControlNet of the model and the picture that it steers by; how much, in which part of the drawing, and "
        "canny or inpaint, which prepare the picture, as in canny=photo.jpg:0.8:0-0.6:canny; may be given again",
        type=_control,
        action="append",
        metavar="NAME=FILE[:SCALE][:START-END][:PREPROCESS]",
    )
    _add(
        picture,
        "--clip-skip",
        "layer of the text encoder, where 1 is the last",
        type=_whole,
        metavar="LAYER",
    )
    enlarge = "enlarge the picture by this, of a side, and draw on from there"
    _add(picture, "--hires-scale", enlarge, type=_number)
    _add(picture, "--hires-strength", "how much of that is to change", type=_number)
    _add(picture, "--hires-steps", "denoising steps of that", type=_whole)
    _add(picture, "--hires-upscaler", "what enlarges it: Lanczos, or the name of an upscaler")
    _add(picture, "--seed", "the same seed draws the same picture", type=_whole)
    _add(picture, "-n", "pictures; picture i is drawn from seed + i", type=_whole)
    doing = parser.add_argument_group("where it is drawn, and where it goes")
    _add(
        doing,
        "--output",
        "a .png file, which is replaced, or a folder, where each picture gets a new name (the current one)",
        metavar="PATH",
    )
    _add(doing, "--server", "host and port of a server's gRPC", metavar="ADDRESS")
    _add(doing, "--local", "draw in this process, never on a server", action="store_true")
    _add(
        doing,
        "--api-key",
        "key that the server asks for; T2I_API_KEY hides it better",
        metavar="KEY",
    )
    _add(doing, "--timeout", "seconds that drawing may take", type=_number, metavar="SECONDS")
    _add(doing, "--quiet", "say nothing but paths and errors", action="store_true")
    return parser


def _add(group: argparse._ArgumentGroup, name: str, meaning: str, **more: Any) -> None:
    group.add_argument(name, help=meaning.replace("%", "%%"), **more)
