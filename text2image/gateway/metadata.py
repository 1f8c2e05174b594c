"""PNG encoding with the picture's parameters inside, in the text form that A1111 began and other tools read.

The chunk is called `parameters` and suffices to draw the picture again: `parse` gives back what `describe` was given.
JPEG and WebP have the same text in EXIF, as A1111 writes it, and `read` finds it in either. Beside it stands XMP, which
tells that a model drew the picture (`provenance.py`).
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from text2image import __version__
from text2image.core.errors import InvalidRequest
from text2image.core.formats import Metadata
from text2image.core.init_image import InitImage
from text2image.core.loras import HASH_DIGITS, tag, take_tags
from text2image.core.messages import (
    Control,
    GeneratedImage,
    LoraWeight,
    ModelInfo,
    Pixels,
    Quality,
    Request,
    RequestParams,
)
from text2image.core.reading import named_embeddings
from text2image.core.samplers import (
    SCHEDULE_TITLES,
    TITLES,
    is_own_schedule,
    sampler_of,
    schedule_of,
    split_schedule,
)
from text2image.core.upscalers import LANCZOS
from text2image.gateway import provenance

CHUNK = "parameters"
XMP_CHUNK = "XML:com.adobe.xmp"
# Beyond this level a picture takes half as long again for a twelfth of its size.
COMPRESS_LEVEL = 3

# Letters of another text than ours that is told, and how many such texts are.
_MAX_TEXT, _MAX_TEXTS = 1 << 14, 32
# EXIF's own folder of fields, the one for comments, and how such a text begins.
_EXIF_FOLDER, _USER_COMMENT = 0x8769, 0x9286
_UNICODE = b"UNICODE\0"
# A JPEG holds one segment of it, less its own length and name.
_MAX_EXIF = 0xFFFF - 2 - 6

_STRENGTH, _SCALE = "Denoising strength", "Hires upscale"
# As `core.upscalers` writes one; other tools tell no hash.
_UPSCALER = re.compile(rf".+ \[[0-9a-f]{{{HASH_DIGITS}}}\]")
_CONTROLNET = re.compile(r"ControlNet \d+")
_NET = re.compile(r"(.+?)(?: \[(\w*)\])?")
_NEGATIVE = "\nNegative prompt: "
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SPECIAL = re.compile(rf'{_CONTROL.pattern}|[,\n:"\\]')
_PARAMETER = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


def png_of(
    image: GeneratedImage, request: Request, model: ModelInfo, told: Metadata = Metadata.FULL
) -> bytes:
    """The PNG file of a picture that was drawn, with so much told in it."""
    parameters = describe(request, image.seed, model) if told is Metadata.FULL else ""
    source = provenance.source_of(request)
    return encode(image.pixels, parameters, "" if told is Metadata.NONE else provenance.xmp(source))


def encode(pixels: Pixels, parameters: str = "", xmp: str = "") -> bytes:
    """The PNG file of a picture; without parameters and XMP it carries no text."""
    info = PngInfo()
    if parameters:
        info.add_text(CHUNK, parameters)
    if xmp:
        info.add_itxt(XMP_CHUNK, xmp)
    file = io.BytesIO()
    image = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.rgb)
    image.save(file, "PNG", pnginfo=info, compress_level=COMPRESS_LEVEL)
    return file.getvalue()


def exif(parameters: str) -> bytes:
    """The EXIF data that tell the parameters; none where a JPEG would have no room for them."""
    told = Image.Exif()
    text = parameters.encode("utf-16-be", errors="replace")
    told.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = _UNICODE + text
    data = told.tobytes() if parameters else b""
    return data if len(data) <= _MAX_EXIF else b""


def read(file: bytes | Path) -> str:
    """The parameters in a PNG, JPEG or WebP file, whoever wrote it in A1111's form; empty if there are none.

    Raises:
        ValueError: it is no picture that can be read.
    """
    try:
        with Image.open(file if isinstance(file, Path) else io.BytesIO(file)) as image:
            if image.format == "PNG":
                return str(image.info.get(CHUNK, ""))
            comment = image.getexif().get_ifd(_EXIF_FOLDER).get(_USER_COMMENT, b"")
    except Exception as error:
        # The readers of each format have errors of their own.
        raise ValueError("it is no picture that can be read") from error
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        return comment.removeprefix(_UNICODE).decode("utf-16-be", errors="replace")
    return ""


def texts(file: bytes) -> dict[str, str]:
    """What else a PNG file says in words, by what it calls them; none in other files, and none that is very long.

    Raises:
        ValueError: it is no picture that can be read.
    """
    try:
        with Image.open(io.BytesIO(file)) as image:
            said = image.info if image.format == "PNG" else {}
            words = {str(name): text for name, text in said.items() if isinstance(text, str)}
    except Exception as error:
        raise ValueError("it is no picture that can be read") from error
    short = [each for each in words.items() if each[0] != CHUNK and len(each[1]) <= _MAX_TEXT]
    return dict(short[:_MAX_TEXTS])


def fields(parameters: str) -> dict[str, str]:
    """What parameters say, one by one, by the names that A1111 gives them; nothing if they are not in its form."""
    try:
        prompt, negative_prompt, _ = _prompts(parameters)
        settings = _settings(parameters)
    except ValueError:
        return {}
    if "Steps" not in settings:
        return {}
    width, x, height = settings.get("Size", "").partition("x")
    sides = {"Size-1": width, "Size-2": height} if x else {}
    return {"Prompt": prompt, "Negative prompt": negative_prompt, **settings, **sides}


def describe(request: Request, seed: int, model: ModelInfo) -> str:
    """The parameters of one picture of a request, drawn from `seed`."""
    settings: dict[str, str] = {
        "Steps": str(request.steps),
        "Sampler": TITLES.get(request.sampler, request.sampler.value),
        **_schedule(request),
        "CFG scale": _number(request.guidance_scale),
        "Seed": str(seed),
        "Size": f"{request.width}x{request.height}",
        **_beginning(request),
        **_controls(request),
        **({"Clip skip": str(request.clip_skip)} if request.clip_skip else {}),
        **_embeddings(request, model),
        **({} if request.quality is Quality.EXACT else {"Quality": request.quality.value}),
        **_lora_hashes(request),
        "Model": model.id,
        "Model hash": model.revision,
        "Version": f"text2image {__version__}",
    }
    text = _compose(request, settings)
    if (request.prompt, request.negative_prompt, request.loras) != _prompts(text):
        # The prompt looks like the form around it, or is not shown as it is; quoted, it is neither.
        settings["Prompt"] = request.prompt
        settings["Negative prompt"] = request.negative_prompt
        if request.loras:
            settings["Loras"] = _tags(request)
        text = _compose(request, settings)
    return text


def parse(parameters: str) -> RequestParams:
    """The request that draws the picture again; what the text does not hold is left to the model's defaults.

    One that began from another picture names its strength, and is refused until that picture is added. So is one that
    was steered by others.

    Raises:
        ValueError: the text is not in this form.
    """
    prompt, negative_prompt, loras = _prompts(parameters)
    settings = _settings(parameters)
    width, _, height = settings.get("Size", "").partition("x")
    sampler, schedule = _sampler(settings)
    try:
        return RequestParams(
            prompt=prompt,
            negative_prompt=negative_prompt,
            width=int(width) if width else None,
            height=int(height) if height else None,
            steps=int(settings["Steps"]),
            guidance_scale=float(settings["CFG scale"]) if "CFG scale" in settings else None,
            seed=int(settings["Seed"]) if "Seed" in settings else None,
            n=1,
            sampler=sampler,
            schedule=schedule,
            # Where nothing is said, as by other tools, nothing was left out.
            quality=settings.get("Quality", Quality.EXACT),
            model=settings.get("Model"),
            loras=loras or None,
            **_begun(settings),
            controls=_controls_in(settings),
            # Nor, where it says no layer, was another taken than the model's own.
            clip_skip=int(settings.get("Clip skip", 0)),
        )
    except KeyError:
        raise ValueError("the text does not end in a line of parameters") from None


def _beginning(request: Request) -> dict[str, str]:
    """What a picture began from. Its own pixels are not told, so whoever draws it again must have it."""
    if request.hires_scale is not None:
        return {
            _STRENGTH: _number(request.hires_strength or 0.0),
            _SCALE: _number(request.hires_scale),
            "Hires steps": str(request.hires_steps),
            "Hires upscaler": request.hires_upscaler or LANCZOS,
        }
    if request.image is None:
        return {}
    hashed = {"Init image hash": request.image.digest[:HASH_DIGITS]}
    return {_STRENGTH: _number(request.strength or 0.0), **hashed}


def _controls(request: Request) -> dict[str, str]:
    """What a picture was steered by, as A1111's extension writes it; the pictures are not told but by their hashes."""
    return {
        f"ControlNet {place}": f"Module: {each.preprocess or 'none'}, Model: {each.name} [{each.hash}], "
        f"Weight: {_number(each.scale)}, Guidance Start: {_number(each.start)}, "
        f"Guidance End: {_number(each.end)}, Image hash: {_digest_of(each)[:HASH_DIGITS]}"
        for place, each in enumerate(request.controls)
    }


def _digest_of(control: Control) -> str:
    return control.image.digest if isinstance(control.image, InitImage) else ""


def _controls_in(settings: dict[str, str]) -> tuple[Control, ...] | None:
    """The controls of a text, whose pictures are yet to be added.

    Raises:
        ValueError: one is written in another form.
    """
    found = []
    for name, value in settings.items():
        if not _CONTROLNET.fullmatch(name):
            continue
        told = dict(each.partition(": ")[::2] for each in value.split(", "))
        model = _NET.fullmatch(told.get("Model", ""))
        if not model:
            raise ValueError(f"{name} names no model")
        module = told.get("Module", "none").lower()
        # Other tools hash otherwise, so that theirs pin nothing here.
        pinned = model[2] if len(model[2] or "") == HASH_DIGITS else ""
        found.append(
            Control(
                model[1],
                scale=float(told.get("Weight", 1)),
                start=float(told.get("Guidance Start", 0)),
                end=float(told.get("Guidance End", 1)),
                preprocess="" if module == "none" else module,
                hash=pinned or "",
            )
        )
    return tuple(found) or None


def _number(value: float) -> str:
    return f"{value!r}".removesuffix(".0")


def _begun(settings: dict[str, str]) -> dict[str, Any]:
    """The strength, of the picture that it began from or of its second pass, and what else is told of that.

    Other tools enlarge otherwise, so that from what they made the small picture alone is drawn again.
    """
    strength = float(settings[_STRENGTH]) if _STRENGTH in settings else None
    if not any(name.startswith("Hires") for name in settings):
        return {"strength": strength}
    named = settings.get("Hires upscaler", "")
    ours = named == LANCZOS or _UPSCALER.fullmatch(named)
    if not ours or _SCALE not in settings:
        return {}
    steps = int(settings.get("Hires steps", 0)) or None
    return {
        "hires_scale": float(settings[_SCALE]),
        "hires_strength": strength,
        "hires_steps": steps,
        "hires_upscaler": None if named == LANCZOS else named,
    }


def _schedule(request: Request) -> dict[str, str]:
    if request.schedule is None:
        return {}
    title = SCHEDULE_TITLES.get(request.schedule, request.schedule.value)
    return {"Schedule type": title}


def _embeddings(request: Request, model: ModelInfo) -> dict[str, str]:
    """The textual inversions that the prompts name, with their files' hashes, as A1111 has them."""
    hashes = {each.name: each.hash for each in named_embeddings(request, model)}
    return {"TI hashes": ", ".join(map(": ".join, hashes.items()))} if hashes else {}


def _sampler(settings: dict[str, str]) -> tuple[str | None, str | None]:
    """The sampler and the schedule by our names; what is not ours stays as it is written, and so is refused later.

    Older tools write the schedule behind the sampler's name.
    """
    name, schedule = settings.get("Sampler"), settings.get("Schedule type", "")
    if name and sampler_of(name) is None and (split := split_schedule(name)):
        name, ending = split
        schedule = ending if is_own_schedule(schedule) else schedule
    ours = (sampler_of(name) or name) if name else None
    if is_own_schedule(schedule):
        return ours, None
    return ours, schedule_of(schedule) or schedule


def _tags(request: Request) -> str:
    return "".join(f" {tag(lora)}" for lora in request.loras)


def _lora_hashes(request: Request) -> dict[str, str]:
    """As A1111 names the files that its tags mean."""
    hashes = ", ".join(f"{lora.name}: {lora.hash}" for lora in request.loras)
    return {"Lora hashes": hashes} if hashes else {}


def _with_hashes(loras: tuple[LoraWeight, ...], settings: dict[str, str]) -> tuple[LoraWeight, ...]:
    """Adapters with the hashes of their files, where those are of our kind: other tools have others."""
    told = dict(each.split(": ", 1) for each in settings["Lora hashes"].split(", ") if ": " in each)
    hashes = {name: value for name, value in told.items() if len(value) == HASH_DIGITS}
    return tuple(LoraWeight(each.name, each.weight, hashes.get(each.name, "")) for each in loras)


def _compose(request: Request, settings: dict[str, str]) -> str:
    negative = f"{_NEGATIVE}{request.negative_prompt}" if request.negative_prompt else ""
    last_line = ", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items())
    # PNG forbids NUL in a text, and other control characters are commands to the terminal that shows it.
    return _CONTROL.sub("", f"{request.prompt}{_tags(request)}{negative}\n{last_line}")


def _quoted(value: str) -> str:
    plain = value and value == value.strip() and not _SPECIAL.search(value)
    return value if plain else json.dumps(value)


def _settings(parameters: str) -> dict[str, str]:
    last_line = parameters.rpartition("\n")[2]
    return {
        name: json.loads(value) if value.startswith('"') else value.strip()
        for name, value in _PARAMETER.findall(last_line)
    }


def _prompts(parameters: str) -> tuple[str, str, tuple[LoraWeight, ...]]:
    """The prompt and the negative one, and the adapters whose tags a tool has written, with their hashes."""
    settings = _settings(parameters)
    prompt, _, negative_prompt = parameters.rpartition("\n")[0].partition(_NEGATIVE)
    tags = prompt
    if "Prompt" in settings:
        prompt, negative_prompt = settings["Prompt"], settings.get("Negative prompt", "")
        tags = settings.get("Loras", "")
    # Without hashes they are words, or whoever draws it again takes them for adapters.
    if "Lora hashes" not in settings:
        return prompt, negative_prompt, ()
    try:
        tagged = take_tags(tags)
    except InvalidRequest:
        return prompt, negative_prompt, ()
    loras = _with_hashes(tagged.loras, settings)
    return (prompt if "Prompt" in settings else tagged.prompt), negative_prompt, loras
