"""Adapters that requests name: their limits, A1111's way of writing them into a prompt, and which ones a model has."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.messages import ControlInfo, LoraInfo, LoraWeight, ModelInfo, RequestParams

# Of a request; each distinct one of a batch is work for all layers that it changes.
MAX_LORAS = 8
# A weight of 1 is what the adapter was trained at. Beyond these there is nothing but noise.
MAX_WEIGHT = 4.0
MAX_NAME = 96
# Digits of a hash, as Civitai's AutoV2 has them.
HASH_DIGITS = 10
# Names of an error that lists what there is.
_MOST_NAMED = 20
# What stands in a name would end the tag, or the entry of a picture's parameters.
_UNWRITABLE = re.compile(r'[:<>",\\\x00-\x1f\x7f-\x9f]')
_TAG = re.compile(r"<lora:([^<>:]*)(?::([^<>]*))?>")


@dataclass(frozen=True, slots=True)
class Tagged:
    """A prompt without its tags, and the adapters that they named, in their order."""

    prompt: str
    loras: tuple[LoraWeight, ...]


def is_writable(name: str) -> bool:
    """Whether an adapter of this name can be asked for in every dialect, and written into a picture's parameters."""
    plain = name == name.strip() and not _UNWRITABLE.search(name)
    return plain and 0 < len(name) <= MAX_NAME and name.isprintable()


def tag(lora: LoraWeight) -> str:
    """An adapter as A1111 writes it into a prompt."""
    return f"<lora:{lora.name}:{_written(lora.weight)}>"


def _written(weight: float) -> str:
    return f"{weight!r}".removesuffix(".0")


def take_tags(prompt: str) -> Tagged:
    """Takes `<lora:name:0.8>` out of a prompt, with one space before it; `<lora:name>` weighs 1.

    Raises:
        InvalidRequest: a tag says something else than one number behind the name.
    """
    loras: list[LoraWeight] = []
    violations: list[FieldViolation] = []

    def taken(match: re.Match[str]) -> str:
        name, written = match[1].strip(), match[2]
        try:
            weight = 1.0 if written is None else float(written)
        except ValueError:
            reason = (
                f"holds {match[0][:80]!r}; write one number behind the name, as in <lora:name:0.8>"
            )
            violations.append(FieldViolation("prompt", reason))
            return ""
        loras.append(LoraWeight(name, weight))
        return ""

    without = re.sub(f" ?{_TAG.pattern}", taken, prompt)
    if violations:
        raise InvalidRequest(*violations)
    return Tagged(without if not loras else without.strip(" "), tuple(loras))


def without_tags(params: RequestParams) -> RequestParams:
    """A request whose prompt's tags have become adapters beside those that it names.

    Raises:
        InvalidRequest: as `take_tags` says.
    """
    if "<lora:" not in params.prompt:
        return params
    tagged = take_tags(params.prompt)
    return replace(params, prompt=tagged.prompt, loras=(*(params.loras or ()), *tagged.loras))


def parse_lora(text: str) -> LoraWeight:
    """An adapter as people write it where it stands alone: `name` or `name:0.8`.

    Raises:
        ValueError: what stands behind the name is no number.
    """
    name, colon, written = text.rpartition(":")
    return LoraWeight(name, float(written)) if colon else LoraWeight(text)


def chosen(loras: Sequence[LoraWeight] | None, model: ModelInfo) -> tuple[LoraWeight, ...]:
    """The adapters of a valid request: ordered, each once with its hash, none that weighs nothing.

    The weights of one that is named more than once add up.

    Raises:
        InvalidRequest: with a violation for each that there is none of, or that cannot be used.
    """
    weights: dict[str, float] = {}
    pinned: dict[str, set[str]] = {}
    for lora in loras or ():
        weights[lora.name] = weights.get(lora.name, 0.0) + lora.weight
        pinned.setdefault(lora.name, set()).update({lora.hash} - {""})
    if len(weights) > MAX_LORAS:
        reason = f"are {len(weights)}; a picture is drawn with at most {MAX_LORAS}"
        raise InvalidRequest(FieldViolation("loras", reason))
    there = {info.name: info for info in model.loras} if weights else {}
    reasons = [
        _why_not(name, weight, pinned[name], model, there.get(name))
        for name, weight in weights.items()
    ]
    if any(reasons):
        raise InvalidRequest(*(FieldViolation("loras", reason) for reason in reasons if reason))
    return tuple(
        LoraWeight(name, weight, there[name].hash)
        for name, weight in sorted(weights.items())
        if weight
    )


def _why_not(
    name: str, weight: float, hashes: set[str], model: ModelInfo, info: LoraInfo | None
) -> str:
    """Why a model cannot be drawn with an adapter, or nothing."""
    if info is None:
        has = listed(model.loras) or "no adapters"
        return f"name {name[:MAX_NAME]!r}, which is not here; {model.id} has {has}"
    if info.fault:
        return f"name {name!r}, which {model.id} cannot be drawn with: it {info.fault}"
    # Written this way round so that NaN is refused too.
    if not (math.isfinite(weight) and -MAX_WEIGHT <= weight <= MAX_WEIGHT):
        return f"give {name!r} the weight {weight:g}; it must be between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}"
    if others := hashes - {info.hash}:
        return f"name {name!r} with the hash {min(others)[:20]!r}; here it is another file, {info.hash}"
    return ""


def listed(infos: Sequence[LoraInfo] | Sequence[ControlInfo]) -> str:
    """The first names of what there is and can be used; nothing where that is nothing."""
    there = [each.name for each in infos if not each.fault]
    return ", ".join(there[:_MOST_NAMED]) + (", ..." if len(there) > _MOST_NAMED else "")


def digest_of(loras: Sequence[LoraInfo], controls: Sequence[ControlInfo]) -> str:
    """Digits that change with what a model has of adapters, and of ControlNets; nothing for none."""
    return "".join(
        hashlib.sha256(repr(each).encode()).hexdigest()[:HASH_DIGITS]
        for each in (loras, controls)
        if each
    )
