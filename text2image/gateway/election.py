"""Which models a gateway draws with, where its runners serve different ones, as while a new one is rolled out."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from text2image.core.errors import ModelNotFound
from text2image.core.messages import Input, ModelInfo, UpscalerInfo
from text2image.core.upscalers import upscalers_in
from text2image.gateway.runner_link import RunnerLink

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Elected:
    """The models that are drawn with, each time anew.

    Attributes:
        default: that of requests that name none; None until a runner was ready.
        served: all, upscalers among them, by name.
        able: by name, runners that draw the same pictures with that model; working: those of any name.
        odd: runners with another default model.
    """

    default: ModelInfo | None = None
    served: dict[str, ModelInfo] = field(default_factory=dict)
    able: dict[str, frozenset[RunnerLink]] = field(default_factory=dict)
    working: frozenset[RunnerLink] = frozenset()
    odd: frozenset[RunnerLink] = frozenset()

    @property
    def models(self) -> list[ModelInfo]:
        """All that draw, the default one first."""
        default = self.default.id if self.default else ""
        drawing = [model for model in self.served.values() if not model.upscale]
        return sorted(drawing, key=lambda model: model.id != default)

    @property
    def upscalers(self) -> tuple[UpscalerInfo, ...]:
        """What enlarges pictures, which requests name otherwise."""
        return upscalers_in(self.served.values())

    def named(self, name: str) -> ModelInfo:
        """The model of this name or alias.

        Raises:
            ModelNotFound: none is called so.
        """
        if (model := self.served.get(name)) and not model.upscale:
            return model
        for model in self.models:
            if name in model.aliases:
                return model
        raise ModelNotFound.of(name, (model.id for model in self.models))

    def has(self, link: RunnerLink, name: str) -> bool:
        """Whether a runner draws with a model, with the default one if the name is empty."""
        default = self.default.id if self.default else ""
        return link in self.able.get(name or default, ())


def elect(links: Sequence[RunnerLink], before: Elected) -> Elected:
    """By each name the model of most ready runners, and as default that of most; on a tie what it was before."""
    defaults = {link: link.model for link in links if link.is_ready and link.model}
    if not defaults:
        return before
    default = _of_most(defaults.values(), before.default)
    odd = frozenset(
        link for link, own in defaults.items() if _pictures_of(own) != _pictures_of(default)
    )
    for link in odd - before.odd:
        logger.warning(
            "%s serves %s, and this gateway draws with %s: it gets no work%s",
            link.name,
            _told(defaults[link]),
            _told(default),
            "" if defaults[link].id == default.id else " but for its own model",
        )
    served: dict[str, ModelInfo] = {}
    able: dict[str, frozenset[RunnerLink]] = {}
    for name in dict.fromkeys(name for link in links for name in link.models):
        own = {link: link.models[name] for link in defaults if name in link.models}
        if not own and name in before.served:
            # Those that have it may be back soon.
            served[name] = before.served[name]
        elif own:
            # What the default is was decided by those whose default it is.
            is_default = name == default.id
            model = default if is_default else _of_most(own.values(), before.served.get(name))
            pictures = _pictures_of(model)
            alike = {link: each for link, each in own.items() if _pictures_of(each) == pictures}
            served[name] = _what_all_can(model, list(alike.values()))
            able[name] = frozenset(alike)
    upscalers = upscalers_in(served.values())
    served = {
        name: replace(model, upscalers=upscalers if Input.IMAGE in model.inputs else ())
        for name, model in served.items()
    }
    working = frozenset(link for links in able.values() for link in links)
    return Elected(served[default.id], served, able, working, odd)


def _of_most(models: Iterable[ModelInfo], before: ModelInfo | None) -> ModelInfo:
    """The model whose pictures most would draw; on a tie the one so far, or else the first."""
    models = list(models)
    votes = Counter(map(_pictures_of, models))
    if before and votes[_pictures_of(before)] == max(votes.values()):
        return before
    pictures = votes.most_common(1)[0][0]
    return next(model for model in models if _pictures_of(model) == pictures)


def _pictures_of(model: ModelInfo) -> ModelInfo:
    """What decides how pictures look: all of a model but the device it is on, and what other pictures it could draw."""
    own = model.width * model.height
    return replace(
        model,
        # Larger pictures than its own it is kept from drawing, where others decode them otherwise.
        max_side=0,
        tiled_above=model.tiled_above if model.tiled_above < own else 0,
        device="",
        samplers=(),
        schedules=(),
        max_steps=(),
        fast="",
        aliases=(),
        licence="",
        price=1.0,
        loras=(),
        controls=(),
        upscalers=(),
        clip_skip=0,
        max_clip_skip=0,
    )


def _what_all_can(model: ModelInfo, serving: Sequence[ModelInfo]) -> ModelInfo:
    """The model with what every runner can draw: in the middle of an upgrade some know more than others."""
    limits = [dict(each.max_steps) for each in serving]
    least = {
        sampler: min(limit[sampler] for limit in limits if sampler in limit)
        for sampler in sorted({sampler for limit in limits for sampler in limit})
    }
    return replace(
        model,
        max_side=_max_side(serving),
        samplers=_in_all([each.samplers for each in serving]),
        schedules=_in_all([each.schedules for each in serving]),
        max_steps=tuple(least.items()),
        loras=_in_all([each.loras for each in serving]),
        controls=_in_all([each.controls for each in serving]),
        # Where they do not mean the same by it, all of them draw exactly.
        fast=serving[0].fast if len({each.fast for each in serving}) == 1 else "",
        clip_skip=min(model.clip_skip, *(each.max_clip_skip for each in serving)),
        max_clip_skip=min(each.max_clip_skip for each in serving),
    )


def _max_side(serving: Sequence[ModelInfo]) -> int:
    """The largest side of a picture that all draw, and all alike: in the size that one decodes in tiles, all do."""
    largest = min(each.max_side for each in serving)
    tiled = {each.tiled_above for each in serving}
    least = min((each for each in tiled if each), default=0)
    return largest if len(tiled) == 1 else min(largest, max(serving[0].width, math.isqrt(least)))


def _in_all(choices: Sequence[tuple[T, ...]]) -> tuple[T, ...]:
    shared = set(choices[0]).intersection(*choices[1:])
    return tuple(each for each in choices[0] if each in shared)


def _told(model: ModelInfo) -> str:
    return f"{model.id} (revision {model.revision}, {model.dtype}, {model.width}x{model.height})"
