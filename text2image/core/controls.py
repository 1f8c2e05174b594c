"""ControlNets that requests name: their limits, the part of a drawing that they steer, and which ones a model has."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.init_image import InitImage
from text2image.core.loras import listed
from text2image.core.messages import Control, ControlInfo, ModelInfo

# What one net adds to a row, of a plain one: its arithmetic beside that of a U-Net of Stable Diffusion 1.5.
CONTROL_LOAD = 0.35
# Of a request; each is a third of a pass more, and a picture to send.
MAX_CONTROLS = 3
# Beyond twice what a net was trained to add there is nothing but its edges.
MAX_SCALE = 2.0
# What makes a control picture of another one: edges, or a hole where it is transparent.
CANNY, INPAINT = "canny", "inpaint"
PREPROCESSORS = (CANNY, INPAINT)
_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_WRITTEN = re.compile(
    rf"(?P<name>[^=]+)=(?P<file>.+?)(?::(?P<scale>{_NUMBER}))?"
    rf"(?::(?P<start>{_NUMBER})-(?P<end>{_NUMBER}))?(?::(?P<preprocess>{'|'.join(PREPROCESSORS)}))?"
)


def steers(control: Control, call: int, calls: int) -> bool:
    """Whether a control steers call number `call` of so many of the network, counted from 0.

    As `controlnet_keep` in diffusers' `pipeline_controlnet` has it: the whole of the call lies within the window.
    """
    return call / calls >= control.start and (call + 1) / calls <= control.end


def parse_control(text: str) -> tuple[Control, str]:
    """A control as people write it, `NAME=FILE[:SCALE][:START-END][:PREPROCESS]`, and the file, yet to be read.

    Raises:
        ValueError: it is no such text.
    """
    match = _WRITTEN.fullmatch(text)
    if not match:
        raise ValueError("it names no file")
    control = Control(
        match["name"].strip(),
        scale=float(match["scale"] or 1),
        start=float(match["start"] or 0),
        end=float(match["end"] or 1),
        preprocess=match["preprocess"] or "",
    )
    return control, match["file"]


def check(controls: Sequence[Control] | None, model: ModelInfo) -> None:
    """Checks all of a request's controls but their pictures, before those are read.

    Raises:
        InvalidRequest: with a violation for each that there is none of, or that cannot be used.
    """
    if not controls:
        return
    if len(controls) > MAX_CONTROLS:
        reason = f"are {len(controls)}; a picture is steered by at most {MAX_CONTROLS}"
        raise InvalidRequest(FieldViolation("controls", reason))
    there = {info.name: info for info in model.controls}
    reasons = [_why_not(each, model, there.get(each.name)) for each in controls]
    if any(reasons):
        raise InvalidRequest(*(FieldViolation("controls", reason) for reason in reasons if reason))


def chosen(controls: Sequence[Control] | None, model: ModelInfo) -> tuple[Control, ...]:
    """The controls of a valid request, each with its hash, none that adds nothing.

    Raises:
        InvalidRequest: as `check` says, or a picture is missing, or is yet to be read.
    """
    check(controls, model)
    there = {info.name: info for info in model.controls} if controls else {}
    valid = []
    for each in controls or ():
        if not isinstance(each.image, InitImage):
            what = (
                "none; add it" if each.image is None else "a file, and those are read by gateways"
            )
            reason = f"name {each.name!r}, whose image is {what}"
            raise InvalidRequest(FieldViolation("controls", reason))
        numbers = (float(each.scale), float(each.start), float(each.end))
        own = there[each.name].hash
        valid.append(Control(each.name, each.image, *numbers, each.preprocess, own))
    return tuple(each for each in valid if each.scale)


def _why_not(control: Control, model: ModelInfo, info: ControlInfo | None) -> str:
    """Why a model cannot be steered by a control, or nothing."""
    name = repr(control.name)
    if info is None:
        has = listed(model.controls) or "no ControlNets"
        return f"name {control.name[:80]!r}, which is not here; {model.id} has {has}"
    if info.fault:
        return f"name {name}, which {model.id} cannot be steered by: it {info.fault}"
    # Written this way round so that NaN is refused too.
    if not (math.isfinite(control.scale) and 0 <= control.scale <= MAX_SCALE):
        return f"give {name} the scale {control.scale:g}; it must be between 0 and {MAX_SCALE:g}"
    if not 0 <= control.start < control.end <= 1:
        return (
            f"give {name} from {control.start:g} to {control.end:g} of the drawing; start must be below end, and both "
            "between 0 and 1"
        )
    if control.preprocess and control.preprocess not in PREPROCESSORS:
        known = ", ".join(PREPROCESSORS)
        return f"ask to preprocess {name} by {control.preprocess[:40]!r}; it must be one of {known}, or left out"
    if control.hash and control.hash != info.hash:
        return (
            f"name {name} with the hash {control.hash[:20]!r}; here it is another file, {info.hash}"
        )
    return ""
