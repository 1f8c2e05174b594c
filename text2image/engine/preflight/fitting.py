"""Whether the parts of a pipeline fit each other, and the whole the samplers, the precision and the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from text2image.core.settings import Safety, Settings
from text2image.engine import devices
from text2image.engine.layouts.folder import GGUF, INDEX, parts_of, read_json
from text2image.engine.layouts.opening import is_usable
from text2image.engine.layouts.safety_checker import why_unchecked
from text2image.engine.preflight.files import Files
from text2image.engine.preflight.findings import Finding, listed
from text2image.engine.preflight.networks import class_of
from text2image.engine.runtimes import quantize
from text2image.engine.runtimes.quantize import Saving
from text2image.engine.samplers.registry import KINDS, own_sampler
from text2image.engine.samplers.tables import can_be_drawn

_GIB = 1 << 30
# Processors of transformers that read films too, for which they need torchvision, also where they read words alone.
_SEEING = frozenset({"Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor"})
# Schedulers of diffusers that need a package, and the package.
_NEEDS = {"DPMSolverSDEScheduler": "torchsde", "CosineDPMSolverMultistepScheduler": "torchsde"}


def check_parts(files: Files) -> None:
    """Tells in `files` which parts the pipeline's class asks for that model_index.json does not name, and which need a
    package that is not installed."""
    for name, (_, named) in parts_of(files.index).items():
        if named in _SEEING and find_spec("torchvision") is None:
            what = (
                f"names a {named} as its {name}, which needs torchvision; pip install torchvision"
            )
            files.findings.append(Finding(INDEX, what))
    kind = class_of("diffusers", str(files.index.get("_class_name")))
    if kind is None:
        return
    expected, _ = kind._get_signature_keys(kind)
    optional = set(kind._optional_components)
    missing = [
        name for name in sorted(expected) if name not in optional and not _is_named(files, name)
    ]
    if missing:
        what = f"names no {listed(missing)}, which a {kind.__name__} draws with"
        files.findings.append(Finding(INDEX, what))


def _is_named(files: Files, name: str) -> bool:
    value = files.index.get(name)
    # Options of a pipeline are no lists, and further encoders may be left out by name, as T5 is.
    left_out = isinstance(value, list) and None in value and not name.endswith(("_2", "_3"))
    return value is not None and not left_out


def check_scheduler(files: Files) -> None:
    """Tells in `files` of a scheduler that the model could not be drawn with."""
    config = files.configs.get("scheduler")
    if config is None:
        return
    where = "scheduler/scheduler_config.json"
    named = str(config.get("_class_name"))
    works = f"what works: {', '.join(sorted({kind.scheduler.__name__ for kind in KINDS.values()}))}"
    if own_sampler(config) is None and not is_usable(config):
        package = _NEEDS.get(named)
        fix = f"; pip install {package}" if package else " of the installed version"
        reason = "needs a package that is not installed" if package else "is no scheduler"
        what = f"{named} {reason}{fix}, or name another class here; {works}"
        files.findings.append(Finding(where, what))
        return
    try:
        drawable = can_be_drawn(config)
    except (ValueError, TypeError, KeyError) as error:
        what = f"{named} cannot be made of this: {' '.join(str(error).split())[:200]}"
        files.findings.append(Finding(where, what))
        return
    if not drawable:
        predicts = config.get("prediction_type", "epsilon")
        what = f"{named} ({predicts}) is a scheduler that no sampler here can stand in for; {works}"
        files.findings.append(Finding(where, what))


def check_fit(files: Files, networks: Mapping[str, Any]) -> None:
    """Tells in `files` of parts that cannot work together."""
    unet, vae = networks.get("unet"), networks.get("vae")
    text = networks.get("text_encoder")
    tell = files.findings.append
    if unet and vae and hasattr(vae.config, "latent_channels"):
        takes, gives = unet.config.in_channels, vae.config.latent_channels
        # Networks for inpainting take a mask and a masked picture besides.
        inpaints = "Inpaint" in str(files.index.get("_class_name")) and takes == 2 * gives + 1
        if takes != gives and not inpaints:
            what = f"the network takes {takes} channels and the autoencoder has {gives}, as for inpainting or upscaling"
            named = "name a model that draws from words alone, or its pipeline for inpainting"
            tell(Finding("unet/config.json", f"{what}; {named}"))
    if unet and text and "text_encoder_2" not in networks:
        # Some project the encoder's output first, and some have a width for each block.
        takes = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
        gives = text.config.hidden_size
        if isinstance(takes, int) and takes != gives:
            what = f"cross_attention_dim is {takes}, and the text encoder puts out {gives} numbers for a token"
            tell(Finding("unet/config.json", f"{what}; they are parts of different models"))
    for name, network in networks.items():
        if name.startswith("text_encoder") and (highest := _highest_token(files, name)) is not None:
            room = getattr(network.config, "vocab_size", highest + 1)
            if highest >= room:
                what = f"its tokens go up to {highest}, and the {name} has room for {room}"
                tell(Finding(_tokenizer_of(name), f"{what}; they are parts of different models"))


def _tokenizer_of(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")


def _highest_token(files: Files, encoder: str) -> int | None:
    """The highest id in a tokenizer's vocabulary, where that is in plain sight."""
    part = files.folder / _tokenizer_of(encoder)
    try:
        if (part / "tokenizer.json").is_file():
            content = read_json(part / "tokenizer.json")
            vocabulary = content["model"]["vocab"]
            added = [int(each["id"]) for each in content.get("added_tokens", ())]
            return max([*map(int, vocabulary.values()), *added])
        return max(map(int, read_json(part / "vocab.json").values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def check_device(
    files: Files,
    networks: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    saving: Saving,
    beside: int = 0,
) -> None:
    """Tells in `files` of a precision that the device does not compute in, and of weights that it has no room for.

    Args:
        beside: bytes of weights that are loaded besides.
    """
    name = str(dtype).removeprefix("torch.")
    if reason := devices.why_not(device, dtype):
        works = [each for each in ("float32", "float16", "bfloat16") if each != name]
        what = f"{name} cannot be computed in on {device} ({reason}); set {' or '.join(works)}"
        files.findings.append(Finding("T2I_DTYPE", what))
    memory = devices.memory_of(device)
    free = memory.free() if memory else None
    # Those in GGUF files stay so.
    kept = {part: path.stat().st_size for part, path in _quantized(files).items()}
    others = {part: network for part, network in networks.items() if part not in kept}
    more = sum(kept.values()) + beside
    needed = quantize.weight_bytes(others, dtype, saving) + more
    if free is None or needed <= free:
        return
    kind = saving.quantize or name
    what = f"the weights take {_gib(needed)} in {kind}, and {device} has {_gib(free)} free"
    smaller = _smaller(others, device, dtype, saving)
    ways = "".join(
        f", or {setting} ({_gib(size + more)})" for setting, size in smaller if size + more < needed
    )
    files.findings.append(Finding("T2I_DEVICE", f"{what}; free some, take a smaller model{ways}"))


def _smaller(
    networks: Mapping[str, Any], device: torch.device, dtype: torch.dtype, saving: Saving
) -> list[tuple[str, int]]:
    """Settings by which a model takes less of the device, and the bytes that it then takes."""
    found = []
    if dtype.itemsize > 2:
        found.append(("T2I_DTYPE=float16", quantize.weight_bytes(networks, torch.float16, saving)))
    if not saving.quantize:
        int8 = replace(saving, quantize="int8")
        found.append(("T2I_QUANTIZE=int8", quantize.weight_bytes(networks, dtype, int8)))
    if not saving.offload and not quantize.is_host(device):
        model = replace(saving, offload="model")
        found.append(("T2I_OFFLOAD=model", quantize.weight_bytes(networks, dtype, model)))
    return found


def check_saving(
    files: Files, device: torch.device, dtype: torch.dtype, saving: Saving, offload: str
) -> None:
    """Tells in `files` of what cannot be quantized, and of offloading where there is nothing to offload from.

    Args:
        offload: T2I_OFFLOAD.
    """
    if reason := quantize.refusal(saving, device, dtype):
        files.findings.append(Finding("T2I_QUANTIZE", reason))
    if offload != "none" and not saving.offload:
        what = f"{offload} has no effect, since what {device} computes with is the host's memory"
        files.findings.append(Finding("T2I_OFFLOAD", what, fatal=False))


def check_checker(files: Files, settings: Settings) -> None:
    """Tells in `files` of a safety checker that is asked for and not there: alone, it would let all pictures pass."""
    if not files.index or not (reason := why_unchecked(files.folder)):
        return
    alone = settings.safety is Safety.MODEL
    do = (
        "set both or classifier to have the classifier look, or take a model that has a checker"
        if alone
        else "the classifier alone looks at its pictures"
    )
    files.findings.append(Finding("T2I_SAFETY", f"{settings.safety}, but {reason}; {do}", alone))


def _quantized(files: Files) -> dict[str, Path]:
    """By part, the GGUF file with its weights."""
    return {
        part: files.folder / place
        for part, found in files.headers.items()
        for place in found
        if place.endswith(GGUF)
    }


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
