"""What a model is before it is loaded: limits and defaults from its configuration, its size from headers of weights.

A catalogue tells of all its models, and checks requests for them, while most of them are on disk alone.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from diffusers.configuration_utils import FrozenDict

from text2image.core.messages import ModelInfo
from text2image.core.settings import Settings
from text2image.engine import devices
from text2image.engine.adapters.files import TEXTS, TRANSFORMER, UNET, layers_of_model
from text2image.engine.adapters.folder import LoraFolder
from text2image.engine.adapters.store import Folder
from text2image.engine.controls.files import Target
from text2image.engine.controls.folder import ControlFolder
from text2image.engine.models import (
    flux,
    general,
    general_info,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)
from text2image.engine.models.contract import Model
from text2image.engine.models.description import describe, vae_factor
from text2image.engine.models.loading import Checkpoint, checkpoint_of, family_of, locate
from text2image.engine.runtimes.choice import LEFT_OUT, saving_of

_WITH_CONTROLS = (stable_diffusion.load, stable_diffusion_xl.load)


def inspect_model(settings: Settings, index: int) -> tuple[ModelInfo, int]:
    """The description that the model has once it is loaded, and the bytes that its weights then take of the device.

    Raises:
        ValueError: the folder holds no pipeline of a known family.
        OSError: a file is missing or cannot be read.
    """
    device = devices.pick_device(settings.device, index)
    dtype = devices.pick_dtype(device, settings.dtype)
    # The thread that it is called in is not the one that draws.
    devices.prepare_thread(device, 1)
    folder = locate(settings, lambda detail: None)
    checkpoint, load = checkpoint_of(settings, folder, device, dtype, lambda detail: None)
    return _described(load, checkpoint), checkpoint.weights


def inspect_folders(settings: Settings, index: int = 0) -> dict[str, Folder]:
    """The adapters and ControlNets of a model that is not loaded, by the field of requests that names them.

    Raises:
        ValueError, OSError: as `inspect_model` says.
    """
    if settings.loras is None and settings.controlnets is None:
        return {}
    folder = locate(settings, lambda detail: None)
    family = family_of(settings, folder)
    if family not in (*_WITH_CONTROLS, stable_diffusion_3.load, flux.load):
        return {}
    device = devices.pick_device(settings.device, index)
    if not saving_of(settings, device, by_itself=False).is_open:
        return {}
    parts_of = json.loads((folder / "model_index.json").read_text())
    with torch.device("meta"):
        network = _network(folder, parts_of, UNET if UNET in parts_of else TRANSFORMER)
        encoders = {name: _network(folder, parts_of, name) for name in TEXTS if parts_of.get(name)}
    found: dict[str, Folder] = {}
    if settings.loras:
        known = {name: each for name, each in encoders.items() if each is not None}
        found["loras"] = LoraFolder(settings.loras.expanduser(), layers_of_model(network, known))
    if settings.controlnets and family in _WITH_CONTROLS:
        scale = vae_factor(_config(folder / "vae", "diffusers", parts_of["vae"][1]))
        target = Target(network.config, scale)
        found["controls"] = ControlFolder(settings.controlnets.expanduser(), target)
    return found


def _network(folder: Path, index: dict[str, Any], name: str) -> Any:
    """A part's network, on the device that is set; None where the pipeline has none of this name."""
    library, named = index[name]
    if named is None:
        return None
    if library == "diffusers":
        kind = getattr(diffusers, named)
        return kind.from_config(kind.load_config(folder, subfolder=name))
    kind = getattr(transformers, named)
    return kind(kind.config_class.from_pretrained(folder / name))


def _described(load: Callable[[Checkpoint], Model], checkpoint: Checkpoint) -> ModelInfo:
    if load is general.load:
        return general_info.describe(general.outline(checkpoint.folder), checkpoint)
    # A family is called as its file is.
    family = load.__module__.rpartition(".")[2].replace("_", "-")
    return describe(_outline(checkpoint.folder), checkpoint, family)


def _outline(folder: Path) -> Any:
    """A diffusers pipeline whose networks are their configurations alone."""
    index = json.loads((folder / "model_index.json").read_text())
    # A pipeline's configuration names its parts, and has options of its own.
    parts: dict[str, Any] = {"config": FrozenDict(index)}
    for name in [name for name, value in index.items() if isinstance(value, list)]:
        library, kind = index[name]
        if kind is None or name in LEFT_OUT:
            parts[name] = None
        elif "scheduler" in name:
            parts[name] = getattr(diffusers, kind).from_pretrained(folder, subfolder=name)
        elif "tokenizer" in name:
            parts[name] = getattr(transformers, kind).from_pretrained(folder / name)
        else:
            config = _config(folder / name, library, kind)
            parts[name] = SimpleNamespace(config=config, kind=kind)
    return SimpleNamespace(**parts)


def _config(folder: Path, library: str, kind: str) -> Any:
    """A part's configuration; what its file leaves out is as its class has it."""
    told = json.loads((folder / "config.json").read_text())
    if library != "diffusers":
        return FrozenDict(told)
    parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return FrozenDict(defaults | told)
