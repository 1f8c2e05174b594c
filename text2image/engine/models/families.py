"""Which family draws with a class of pipelines: one that steps it itself, or the general one for all others."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import diffusers

from text2image.engine.models.contract import Model

Loader = Callable[..., Model]
# What a pipeline from text to image is asked for.
_ASKED = frozenset({"prompt", "generator", "output_type", "num_inference_steps", "height", "width"})
# Words in the arguments of pipelines that want, or make, something else.
_OTHERS = ("image", "video", "frame", "audio", "control")
_HARMLESS = ("num_images_per_prompt", "ip_adapter_image")
# Those that can be given a picture to change, and draw from a text where they are given none.
_EDITORS = frozenset({"Flux2KleinPipeline"})
# Words in the names of those that draw half a picture, or that set up networks which others share for each picture.
_REFUSED = ("Prior", "Combined", "PAG", "SAG", "LDM3D", "Panorama", "Adapter", "ControlNet")


@cache
def is_text_to_image(named: str) -> bool:
    """Whether diffusers has a pipeline of this name that draws a picture from a text alone, as its signature tells."""
    kind = getattr(diffusers, named, None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.DiffusionPipeline):
        return False
    if any(word in named for word in _REFUSED) or ".deprecated" in kind.__module__:
        return False
    parameters = inspect.signature(kind.__call__).parameters
    if not parameters.keys() >= _ASKED:
        return False
    for name, parameter in list(parameters.items())[1:]:
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and name != "prompt" and not variable:
            return False
        if any(word in name for word in _HARMLESS) or (name == "image" and named in _EDITORS):
            continue
        if any(word in name for word in _OTHERS):
            return False
    return True


@dataclass(frozen=True, slots=True)
class Families:
    """What loads a pipeline, by its class.

    Attributes:
        own: of the classes that have a family of their own.
        general: of all others that make a picture of a text alone.
    """

    own: dict[str, Loader]
    general: Loader

    def loader_of(self, named: object) -> Loader | None:
        """What loads pipelines of a class, which is what a model_index.json names; None if nothing here does."""
        if not isinstance(named, str):
            return None
        return self.own.get(named) or (self.general if is_text_to_image(named) else None)
