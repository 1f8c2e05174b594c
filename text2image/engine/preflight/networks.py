"""Weights beside the networks that the configurations describe, which are built without any: on torch's meta device.

Libraries fill a parameter that a file lacks with random numbers, and drop one that they know nothing of.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders import single_file_utils as originals
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from text2image.engine.layouts import structure
from text2image.engine.layouts.folder import GGUF, INDEX, has_weights, parts_of
from text2image.engine.preflight.files import Files, all_headers
from text2image.engine.preflight.findings import Finding, listed

# Types that parameters are read from; torch makes whatever precision is set of them.
_READ = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_COUNTERS = frozenset({"I64", "I32", "BOOL"})
# Classes of transformers whose files name parameters as they do, but for a word in front.
_COMPARED = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
# Counters that older versions kept among the weights, and the word that CLIP's text encoder lost in front.
_IDLE = "position_ids"
_IN_FRONT = "text_model."

Shapes = Mapping[str, tuple[int, ...]]


def build_networks(files: Files) -> dict[str, Any]:
    """By part, its network without weights; what cannot be built is told in `files`."""
    networks = {}
    for name, (library, kind) in parts_of(files.index).items():
        if not has_weights(kind):
            continue
        found = class_of(library, kind)
        if found is None:
            what = f"names a {library}.{kind}, which is not in {_versions()}"
            files.findings.append(Finding(INDEX, what))
        elif name in files.configs:
            try:
                networks[name] = _build(found, files, name)
            except Exception as error:
                # Whatever a constructor makes of values that its author did not think of.
                reason = " ".join(str(error).split())[:300]
                where = f"{name}/config.json"
                files.findings.append(Finding(where, f"describes no {kind}: {reason}"))
    return networks


def class_of(library: str, kind: str) -> Any:
    """The class that model_index.json names, or None; those that only a pipeline of diffusers has are found in it."""
    if library in ("diffusers", "transformers"):
        return getattr(importlib.import_module(library), kind, None)
    return getattr(getattr(diffusers.pipelines, library, None), kind, None)


def _versions() -> str:
    return f"diffusers {diffusers.__version__} or transformers {transformers.__version__}"


def _build(kind: Any, files: Files, name: str) -> Any:
    with torch.device("meta"):
        if issubclass(kind, diffusers.ModelMixin):
            return kind.from_config(files.configs[name])
        config = kind.config_class.from_pretrained(files.folder / name, local_files_only=True)
        return kind(config)


def compare(files: Files, networks: Mapping[str, Any]) -> None:
    """Tells in `files` what weights lack, what they add, and what has another shape than its configuration says."""
    for name, network in networks.items():
        kind = type(network).__name__
        if "quantization_config" in files.configs[name]:
            method = files.configs[name]["quantization_config"].get("quant_method", "somehow")
            what = (
                f"the weights are quantized ({method}); fetch the model in half or full precision"
            )
            files.findings.append(Finding(f"{name}/config.json", what))
        elif isinstance(network, diffusers.ModelMixin) or kind in _COMPARED:
            _compare_part(files, name, network)


def _compare_part(files: Files, name: str, network: Any) -> None:
    single = files.headers.get("")
    headers = single or files.headers.get(name)
    if not headers:
        return
    stored = {
        key: each.shape for header in headers.values() for key, each in header.tensors.items()
    }
    try:
        named: Shapes = stored
        if single:
            named = _by_new_names(stored, name, network)
        elif next(iter(headers)).endswith(GGUF):
            named = _by_diffusers_names(stored, network)
    except (KeyError, IndexError, AttributeError) as error:
        what = f"the weights of its {name} cannot be read by their names: {error}"
        files.findings.append(Finding(next(iter(headers)), what))
        return
    place = next(iter(headers)) if len(headers) == 1 else name
    source = f"{name}/config.json"
    files.findings.extend(Finding(place, what) for what in _differences(network, named, source))


def check_types(files: Files) -> None:
    """Tells in `files` of weights in types that are not read."""
    for place, header in all_headers(files):
        if place.endswith(GGUF):
            # Its own types were looked at when it was read.
            continue
        odd = sorted({each.dtype for each in header.tensors.values()} - _READ - _COUNTERS)
        if odd:
            what = f"holds weights as {listed(odd)}; fetch the model in half or full precision"
            files.findings.append(Finding(place, f"{what} (F16, BF16, F32)"))


def _by_new_names(stored: Shapes, name: str, network: Any) -> dict[str, tuple[int, ...]]:
    """What a single file holds of a part, by the names that diffusers gives it when it loads it."""
    # The weights that training has averaged beside the others; diffusers does not read them.
    kept = {key: shape for key, shape in stored.items() if not key.startswith("model_ema.")}
    if isinstance(network, CLIPTextModelWithProjection):
        prefix = structure.OPEN_CLIP_XL
    else:
        texts = (structure.OPEN_CLIP, structure.CLIP_XL, structure.CLIP)
        prefix = next(each for each in texts if any(key.startswith(each) for key in kept))
    if prefix in (structure.CLIP, structure.CLIP_XL) and isinstance(network, CLIPTextModel):
        return structure.under(kept, prefix)
    empty = {key: torch.empty(shape, device="meta") for key, shape in kept.items()}
    if isinstance(network, diffusers.UNet2DConditionModel):
        converted = originals.convert_ldm_unet_checkpoint(empty, network.config)
    elif isinstance(network, diffusers.AutoencoderKL):
        converted = originals.convert_ldm_vae_checkpoint(empty, network.config)
    else:
        converted = originals.convert_open_clip_checkpoint(network, empty, prefix=prefix)
    return {key: tuple(each.shape) for key, each in converted.items()}


def _by_diffusers_names(stored: Shapes, network: Any) -> Shapes:
    """What a GGUF file holds, by diffusers' names; it may have those of the original training code.

    Raises:
        KeyError: they are neither.
    """
    kind = type(network).__name__
    converter = SINGLE_FILE_LOADABLE_CLASSES.get(kind, {}).get("checkpoint_mapping_fn")
    if converter is None:
        raise KeyError(f"diffusers reads no {kind} from a GGUF file")
    if network.state_dict().keys() <= stored.keys():
        return stored
    empty = {key: torch.empty(shape, device="meta") for key, shape in stored.items()}
    converted = converter(checkpoint=empty, config=network.config)
    return {key: tuple(each.shape) for key, each in converted.items()}


def _differences(network: Any, stored: Shapes, source: str) -> list[str]:
    """What parameters are not as the configuration `source` has them, in words."""
    expected, found, ignored = _alike(network, stored)
    missing = [key for key in expected if key not in found]
    added = [
        key
        for key in found
        if key not in expected and not key.endswith(_IDLE) and not _matches(key, ignored)
    ]
    shapes = [
        f"{key} is {_sides(found[key])} and not {_sides(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    told = []
    if missing:
        told.append(
            f"lacks {len(missing)} of the {len(expected)} parameters that {source} asks for: {listed(missing)}"
        )
    if added:
        told.append(
            f"has {len(added)} parameters that {source} knows nothing of: {listed(sorted(added))}"
        )
    if shapes:
        told.append(f"has other shapes than {source} says: {listed(shapes)}")
    return told


def _alike(network: Any, stored: Shapes) -> tuple[Shapes, Shapes, tuple[str, ...]]:
    """A network's parameters and a file's, named alike, and patterns of those that a file may hold besides."""
    expected = {key: tuple(each.shape) for key, each in network.state_dict().items()}
    found = dict(stored)
    if isinstance(network, diffusers.ModelMixin):
        # Names of years ago, as of attention in autoencoders.
        network._fix_state_dict_keys_on_load(found)
        return expected, found, tuple(network._keys_to_ignore_on_load_unexpected or ())
    # Parameters that are another one under a second name, which a file may leave out.
    tied = tuple(getattr(network, "_tied_weights_keys", None) or ())
    # A file may hold more than is asked of it: CLIP's vision, T5's decoder.
    known = {key.removeprefix(_IN_FRONT).partition(".")[0] for key in expected}
    expected = {
        key.removeprefix(_IN_FRONT): shape
        for key, shape in expected.items()
        if not _matches(key, tied)
    }
    found = {key.removeprefix(_IN_FRONT): shape for key, shape in found.items()}
    kept = {key: shape for key, shape in found.items() if key.partition(".")[0] in known}
    return expected, kept, tied


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, key) for pattern in patterns)


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
