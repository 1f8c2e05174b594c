"""Upscalers' files: read as numbers alone, told apart by spandrel, and tried before any request may name them.

A file's names and shapes decide how large a network spandrel builds, so both are bounded before it does.
"""

from __future__ import annotations

import hashlib
import re
import sys
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file

from text2image.engine.layouts.headers import Unreadable, load_pickle, read_header

# What training code saves its weights under.
_WRAPPERS = ("state_dict", "params_ema", "params-ema", "params", "model", "net")
# Those of spandrel's architectures that need torchvision; neither is for enlarging.
_NEED_TORCHVISION = ("LaMa", "RestoreFormer")
# Beyond these a file is none of an upscaler's, and its network would take for ever to build.
_MOST_TENSORS, _MOST_SIDE, _MOST_NUMBER, _MOST_SCALE = 20_000, 4096, 1024, 16
_MOST_CHARS = 240
_NUMBER = re.compile(r"\d+")
# Sides of the picture that a network is tried with.
_TRIED = 32
_REVISION_DIGITS = 12


class NotAnUpscaler(ValueError):
    """A file that nothing is enlarged with; the text says why, and goes on from the file's name."""


def revision_of(path: Path) -> str:
    """The first digits of the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_REVISION_DIGITS]


@torch.inference_mode()
def read(path: Path) -> Any:
    """spandrel's descriptor of a file, in fp32 on the CPU, which has enlarged a small picture.

    Raises:
        NotAnUpscaler: it is none, or is damaged.
        OSError: it cannot be read.
    """
    try:
        state = _tensors(path)
        _check_bounds(state, path.stat().st_size)
        descriptor = _built(state)
    except Unreadable as error:
        raise NotAnUpscaler(_shortened(error)) from error
    except SafetensorError as error:
        raise NotAnUpscaler(f"is damaged: {_shortened(error)}") from error
    _check_kind(descriptor)
    if not all(each.isfinite().all() for each in descriptor.model.parameters()):
        raise NotAnUpscaler("holds numbers that are not finite")
    try:
        drawn = descriptor(torch.full((1, 3, _TRIED, _TRIED), 0.5))
    except Exception as error:
        raise NotAnUpscaler(f"enlarges nothing: {_shortened(error)}") from error
    side = _TRIED * descriptor.scale
    if drawn.shape != (1, 3, side, side) or not drawn.isfinite().all():
        raise NotAnUpscaler("enlarges nothing: its output has another size, or is not finite")
    return descriptor


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        # It says what is wrong in better words.
        read_header(path)
        return load_file(path)
    return load_pickle(path, _WRAPPERS)


def _check_bounds(state: dict[str, torch.Tensor], size: int) -> None:
    """Whether a network of these tensors is one that the file holds."""
    numbers = sum(each.numel() for each in state.values())
    sides = max((side for each in state.values() for side in each.shape), default=0)
    counted = max(
        (int(number[:9]) for name in state for number in _NUMBER.findall(name)), default=0
    )
    if (
        len(state) > _MOST_TENSORS
        or numbers > size
        or sides > _MOST_SIDE
        or counted > _MOST_NUMBER
        or not all(each.numel() for each in state.values())
    ):
        raise NotAnUpscaler("is no upscaler: its tensors have names or shapes of none")


def _built(state: dict[str, torch.Tensor]) -> Any:
    """The network of tensors: first without memory, to see that they are all of it."""
    for each in state:
        state[each] = state[each].float() if state[each].is_floating_point() else state[each]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with init_empty_weights():
                registry().load(dict(state))
            return registry().load(dict(state)).eval()
    except Exception as error:
        # Of names and shapes that spandrel knows no network by.
        why = _shortened(error)
        raise NotAnUpscaler(
            f"is no upscaler that spandrel knows{': ' if why else ''}{why}"
        ) from error


def _check_kind(descriptor: Any) -> None:
    from spandrel import ImageModelDescriptor

    if not isinstance(descriptor, ImageModelDescriptor) or descriptor.purpose == "FaceSR":
        raise NotAnUpscaler(
            f"is for {getattr(descriptor, 'purpose', 'something else')}, not for enlarging"
        )
    channels = descriptor.input_channels, descriptor.output_channels
    if channels != (3, 3) or not 1 <= descriptor.scale <= _MOST_SCALE:
        raise NotAnUpscaler(
            f"takes {channels[0]} and gives {channels[1]} colours at {descriptor.scale} times the size; "
            f"3 and 3 are drawn, at up to {_MOST_SCALE} times"
        )


def _shortened(error: Exception) -> str:
    """What an error says, in one line; of a damaged file it may quote anything."""
    shown = "".join(each if each.isprintable() else " " for each in str(error))
    return " ".join(shown.split())[:_MOST_CHARS]


@cache
def registry() -> Any:
    """spandrel's architectures; without torchvision, all but those that need it.

    spandrel imports all of them at once, and torchvision must be of the very build of torch that is here. In the
    place of the two modules that need it stand ones that know no file.
    """
    stands_in = [] if find_spec("torchvision") else list(_NEED_TORCHVISION)
    names = [f"spandrel.architectures.{name}" for name in stands_in]
    for short, name in zip(stands_in, names, strict=True):
        module: Any = ModuleType(name)
        setattr(module, f"{short}Arch", lambda short=short: _Nothing(short))
        sys.modules[name] = module
    from spandrel import MAIN_REGISTRY

    return MAIN_REGISTRY


class _Nothing:
    """An architecture that no file is of."""

    def __init__(self, name: str) -> None:
        self.id = self.name = name

    def detect(self, state: Any) -> bool:
        return False
