"""Units of A1111's extension for ControlNet, as `alwayson_scripts` has them, in our words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from text2image.api.forms import decoded
from text2image.core import controls
from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.messages import Control

SCRIPT = "ControlNet"
# What makes a control picture of an image here, by what the extension calls it.
_MODULES = {
    "none": "",
    "canny": controls.CANNY,
    "inpaint": controls.INPAINT,
    "inpaint_only": controls.INPAINT,
    "inpaint_global_harmonious": controls.INPAINT,
}
# Parts of a unit that would change the picture, each with the values that do not.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "control_mode": (0, "Balanced"),
    "mask": ("",),
    "mask_image": ("",),
    "effective_region_mask": ("",),
    "hr_option": ("Both", "HiResFixOption.BOTH"),
    "advanced_weighting": ([],),
    "guessmode": (False,),
    "batch_images": ("",),
    "input_mode": ("simple",),
}
_HASH = re.compile(r" \[[0-9a-f]{4,64}\]$")


def named(scripts: Mapping[str, Any]) -> str:
    """What a request calls the script, in any case."""
    return next((name for name in scripts if name.lower() == SCRIPT.lower()), SCRIPT)


def violations(scripts: Mapping[str, Any]) -> Iterator[FieldViolation]:
    """What of its units is not done here."""
    name = named(scripts)
    for unit in _units(scripts):
        for reason in _reasons(unit):
            yield FieldViolation(f"alwayson_scripts.{name}", reason)


def controls_of(scripts: Mapping[str, Any], image: bytes | None) -> tuple[Control, ...] | None:
    """The controls that valid units ask for; `image` is that of units without one of their own.

    Raises:
        InvalidRequest: an image is no base64.
    """
    return tuple(_control(unit, image, named(scripts)) for unit in _units(scripts)) or None


def _units(scripts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that are switched on; what is none is one without a model."""
    script = scripts.get(named(scripts))
    args = script.get("args") if isinstance(script, dict) else script
    units = args if isinstance(args, list) else [args] if args else []
    return [
        unit if isinstance(unit, dict) else {}
        for unit in units
        if unit and not (isinstance(unit, dict) and unit.get("enabled", True) is False)
    ]


def _reasons(unit: Mapping[str, Any]) -> Iterator[str]:
    model = unit.get("model")
    if not isinstance(model, str) or model in ("", "None"):
        yield "has a unit without a model; name one, or switch it off by enabled: false"
    if _module(unit) is None:
        known = ", ".join(_MODULES)
        yield f"has the module {_shown(unit.get('module'))}; it must be one of {known}"
    for name in ("weight", "guidance_start", "guidance_end"):
        value = unit.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            yield f"has the {name} {_shown(value)}; it must be a number"
    for name, values in _ONLY.items():
        if unit.get(name) not in (None, *values):
            only = " or ".join(repr(value) for value in values if value)
            done = f"only {only} is done here" if only else "leave it out"
            yield f"has the {name} {_shown(unit[name])}; {done}"
    if not isinstance(_image(unit), str | None):
        yield "has an image that is no base64"


def _module(unit: Mapping[str, Any]) -> str | None:
    module = unit.get("module") or "none"
    return _MODULES.get(module.lower()) if isinstance(module, str) else None


def _image(unit: Mapping[str, Any]) -> Any:
    """The image as base64; older clients send it in an object."""
    image = unit.get("image") or unit.get("input_image") or None
    return image.get("image") if isinstance(image, dict) else image


def _control(unit: Mapping[str, Any], image: bytes | None, name: str) -> Control:
    own = decoded(f"alwayson_scripts.{name}", _image(unit))
    file = image if own is None else own
    if file is None:
        reason = "has a unit without an image; a text alone steers nothing"
        raise InvalidRequest(FieldViolation(f"alwayson_scripts.{name}", reason))
    return Control(
        _HASH.sub("", unit["model"]),
        file,
        _number(unit, "weight", 1.0),
        _number(unit, "guidance_start", 0.0),
        _number(unit, "guidance_end", 1.0),
        _module(unit) or "",
    )


def _number(unit: Mapping[str, Any], name: str, default: float) -> float:
    value = unit.get(name)
    # One that no float holds is beyond every limit.
    return default if value is None else float(min(max(value, -1e9), 1e9))


def _shown(value: Any) -> str:
    return repr(value)[:40]
