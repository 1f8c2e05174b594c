"""What of a request in A1111's dialect is not done here and would change the picture, each by the name of its field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from text2image.api.a1111 import controlnet, masks
from text2image.api.a1111.overrides import Named
from text2image.core import validation
from text2image.core.errors import FieldViolation, ModelNotFound
from text2image.core.messages import SIDE_MULTIPLE, ModelInfo, Sampler
from text2image.core.samplers import sampler_of, split_schedule

if TYPE_CHECKING:
    from text2image.api.a1111.messages import Asked, TextToImage

MAX_TASK_ID = 128
# How much noise samplers add that are made to, by `eta`; and DDIM, which is not.
_ETA = {
    Sampler.DDIM: 0,
    Sampler.EULER_ANCESTRAL: 1,
    Sampler.DPM2_ANCESTRAL: 1,
    Sampler.DPMPP_2M_SDE: 1,
    Sampler.DPMPP_3M_SDE: 1,
}
# The same of the second pass, which is the first one's but for its size.
_SECOND: Mapping[str, tuple[Any, ...]] = {
    "hr_checkpoint_name": ("None", "Use same checkpoint"),
    "hr_sampler_name": ("Use same sampler",),
    "hr_scheduler": ("Use same scheduler",),
    "hr_additional_modules": (["Use same choices"],),
    "hr_distilled_cfg": (3.5,),
    "firstphase_width": (0,),
    "firstphase_height": (0,),
}
# A1111's names of those that enlarge latents, and not pictures, begin so.
_LATENT = "Latent"
_SAME = {
    "hr_prompt": "prompt",
    "hr_negative_prompt": "negative_prompt",
    "hr_cfg": "cfg_scale",
    "hr_sampler_name": "sampler_name",
    "hr_scheduler": "scheduler",
}
_EMPTY: tuple[Any, ...] = (None, "", [])


def of(body: Asked, named: Named, chosen: str | None) -> Iterator[FieldViolation]:
    """All of a request.

    Raises:
        Unavailable: it is not known yet which models there are.
    """
    yield from _fixed(body)
    yield from body.overrides.violations(named)
    yield from _scripts(body.alwayson_scripts or {})
    yield from _counts(body)
    yield from masks.violations(body)
    if body.styles:
        yield FieldViolation("styles", "must be empty: there are none here")
    if body.force_task_id and len(body.force_task_id) > MAX_TASK_ID:
        yield FieldViolation("force_task_id", f"has more than {MAX_TASK_ID} characters")
    try:
        model = named(body.overrides.model(named) or chosen)
    except ModelNotFound:
        # Told above, unless it was chosen before.
        return
    yield from _noise(body, model)
    if getattr(body, "enable_hr", False):
        yield from _second_pass(body, model)  # type: ignore[arg-type] # of text alone


def count(body: Asked) -> int:
    """Pictures that are asked for."""
    return _or_one(body.batch_size) * _or_one(body.n_iter)


def is_off(script: Any) -> bool:
    """Whether a script's arguments leave it switched off: there are none, the first says so, or each unit does."""
    args = script.get("args") if isinstance(script, dict) else script
    if not args:
        return True
    if not isinstance(args, list):
        return False
    units = [unit for unit in args if isinstance(unit, dict)]
    off = [unit for unit in units if unit.get("enabled", unit.get("enable", True)) is False]
    return args[0] is False or len(off) == len(args) or not any(args)


def _fixed(body: Asked) -> Iterator[FieldViolation]:
    """Fields whose values are those of their schema, or else not done here."""
    for name, described in type(body).model_fields.items():
        extra, value = described.json_schema_extra, getattr(body, name)
        if name == "quality" or not isinstance(extra, dict) or "enum" not in extra:
            continue
        values = extra["enum"]
        if isinstance(values, list) and value not in values:
            yield FieldViolation(
                name, _undone(value, [each for each in values if each is not None])
            )


def _undone(value: Any, done: list[Any]) -> str:
    shown = " or ".join(repr(each) for each in done if each not in _EMPTY)
    return f"is {repr(value)[:40]}, which is not done here; " + (
        f"it must be {shown}" if shown else "leave it out"
    )


def _scripts(scripts: Mapping[str, Any]) -> Iterator[FieldViolation]:
    yield from controlnet.violations(scripts)
    own = controlnet.named(scripts)
    for name, script in scripts.items():
        if name != own and not is_off(script):
            yield FieldViolation(f"alwayson_scripts.{name[:80]}", "is no script of this server")


def _counts(body: Asked) -> Iterator[FieldViolation]:
    most = validation.MAX_IMAGES
    counts = {name: getattr(body, name) for name in ("batch_size", "n_iter")}
    wrong = {n: c for n, c in counts.items() if c is not None and not 1 <= c <= most}
    for name, value in wrong.items():
        yield FieldViolation(name, f"is {value}; it must be between 1 and {most}")
    if not wrong and count(body) > most:
        reason = f"makes {count(body)} pictures with batch_size; at most {most} are drawn at once"
        yield FieldViolation("n_iter", reason)


def _noise(body: Asked, model: ModelInfo) -> Iterator[FieldViolation]:
    """`eta`, which means something with some samplers alone."""
    if body.eta is None:
        return
    name = body.sampler[1] or model.sampler.value
    split = split_schedule(name)
    sampler = sampler_of(name) or (split and split[0])
    if sampler in _ETA and body.eta != _ETA[sampler]:
        reason = f"is {body.eta:g}; with {sampler} it must be {_ETA[sampler]}, or left out"
        yield FieldViolation("eta", reason)


def _second_pass(body: TextToImage, model: ModelInfo) -> Iterator[FieldViolation]:
    for name in {**_SECOND, **_SAME}:
        value, same = getattr(body, name), getattr(body, _SAME.get(name, ""), None)
        done = _SECOND.get(name, ())
        if value not in (*_EMPTY, *done, same):
            yield FieldViolation(name, _undone(value, [*done, *([same] if same else [])]))
    if (body.hr_upscaler or "").startswith(_LATENT):
        # What else is none is told with the names that there are.
        reason = (
            f"is {body.hr_upscaler!r}: latents are not enlarged here; name Lanczos, or an upscaler"
        )
        yield FieldViolation("hr_upscaler", reason)
    sides = {"hr_resize_x": body.width or model.width, "hr_resize_y": body.height or model.height}
    asked = {name: getattr(body, name) for name in sides if getattr(body, name)}
    wrong = {
        name: value
        for name, value in asked.items()
        if not 0 < value <= model.max_side or value % SIDE_MULTIPLE
    }
    for name, value in wrong.items():
        reason = f"is {value}; it must be a multiple of {SIDE_MULTIPLE}, at most {model.max_side}"
        yield FieldViolation(name, reason)
    if len(asked) == 2 and not wrong:
        height = body.scale(model) * sides["hr_resize_y"]
        if not math.isclose(height, asked["hr_resize_y"], abs_tol=SIDE_MULTIPLE / 2):
            reason = f"is {asked['hr_resize_y']}; proportions are kept, which makes {height:.0f}"
            yield FieldViolation("hr_resize_y", reason)


def _or_one(value: int | None) -> int:
    return 1 if value is None else value
