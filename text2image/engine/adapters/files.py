"""Adapters' files: which layers of a model they change, by their headers alone, and their numbers.

What diffusers reads is read, by its own converters: diffusers' and PEFT's names, kohya's with alphas, LoCon's
convolutions, both text encoders; for Flux also XLabs' names. Only safetensors, which holds numbers and no code.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.loaders.lora_pipeline import (
    FluxLoraLoaderMixin,
    SD3LoraLoaderMixin,
    StableDiffusionLoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
)
from diffusers.utils import state_dict_utils as formats
from safetensors import SafetensorError, safe_open
from torch import nn

from text2image.engine.layouts.headers import Header, Stored
from text2image.engine.runtimes.forward import is_flux, is_sd3

logger = logging.getLogger(__name__)

UNET, TRANSFORMER = "unet", "transformer"
TEXTS = ("text_encoder", "text_encoder_2")
# Parts of names in files whose numbers mean something else than a product of two low ranks, which would be dropped.
_FOREIGN = ("dora_scale", "lora_magnitude_vector", "hada_", "lokr_", "lora_mid", "oft_", ".diff")
_FOREIGN_PEFT = ("use_dora", "use_rslora", "lora_bias")
_KOHYA_DOWN = ".lora_down.weight"
# Names that an error lists, and characters of each.
_MOST_NAMED, _MOST_CHARS = 3, 80
# Where diffusers and PEFT tell the alphas of files in their format.
_PEFT_METADATA = "lora_adapter_metadata"


class NotAnAdapter(Exception):
    """This model cannot be drawn with a file; the text says why, and goes on from the file's name."""


class Place(NamedTuple):
    """A layer of a model: the part of the pipeline, and the layer's path in it."""

    part: str
    path: str

    def __str__(self) -> str:
        return f"{self.part}.{self.path}"


class LowRank(NamedTuple):
    """What an adapter adds to a layer's weights at 1: the product of `up` (out, rank) and `down` (rank, in).

    Those of a convolution have its dimensions behind: `down` its kernel's, `up` ones.
    """

    down: torch.Tensor
    up: torch.Tensor


class Layers(NamedTuple):
    """The layers of a model that adapters may change, by the shapes of their weights.

    Attributes:
        config: its network's configuration.
        reader: diffusers' loader for such a model.
    """

    shapes: Mapping[Place, torch.Size]
    config: Any
    reader: Any

    @property
    def network(self) -> str:
        """The part that is asked in each step."""
        return str(self.reader._lora_loadable_modules[0])

    @property
    def parts(self) -> tuple[str, ...]:
        """Those that diffusers reads adapters for."""
        return tuple(self.reader._lora_loadable_modules)


def layers_of_model(network: Any, encoders: Mapping[str, nn.Module]) -> Layers:
    """The layers of a U-Net or transformer and of the text encoders beside it, which may be on the meta device."""
    layers = Layers({}, network.config, _reader_of(network.config))
    parts = {layers.network: network, **encoders}
    shapes = {
        Place(part, path): layer.weight.shape
        for part in layers.parts
        for path, layer in parts.get(part, nn.Module()).named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }
    return layers._replace(shapes=shapes)


def _reader_of(config: Any) -> Any:
    if is_flux(config):
        return FluxLoraLoaderMixin
    if is_sd3(config):
        return SD3LoraLoaderMixin
    is_xl = config.addition_embed_type == "text_time"
    return StableDiffusionXLLoraLoaderMixin if is_xl else StableDiffusionLoraLoaderMixin


def inspect(path: Path, header: Header, layers: Layers) -> None:
    """Does nothing if a model with these layers can be drawn with the file, by its header and its alphas.

    Raises:
        NotAnAdapter: it cannot.
        OSError: it cannot be read.
    """
    # Opened in any case, which checks that shapes and data fit each other.
    alphas = _tensors(path, [name for name in header.tensors if name.endswith(".alpha")])
    try:
        state = {name: _outline(each) for name, each in header.tensors.items()}
    except (RuntimeError, TypeError) as error:
        raise NotAnAdapter(f"holds what is not read here: {str(error)[:_MOST_CHARS]}") from None
    _converted(state | alphas, header.metadata, layers)


def _outline(stored: Stored) -> torch.Tensor:
    """A tensor of the same shape without numbers; whole ones stay such."""
    is_whole = stored.dtype.startswith(("I", "U", "B")) and stored.dtype != "BF16"
    return torch.empty(stored.shape, dtype=torch.int8 if is_whole else None, device="meta")


def read(
    path: Path,
    header: Header,
    layers: Layers,
    homes: Mapping[str, tuple[torch.device, torch.dtype]],
) -> dict[Place, LowRank]:
    """An adapter's numbers by layer; alphas are multiplied into `up`.

    Args:
        homes: by part of the pipeline, where and in which precision its network computes.

    Raises:
        NotAnAdapter: as `inspect` says, or the numbers are not finite in this precision.
        OSError: it cannot be read.
    """
    found = _converted(_tensors(path, list(header.tensors)), header.metadata, layers)
    cast = {
        place: LowRank(*(each.to(*homes[place.part]) for each in low))
        for place, low in found.items()
    }
    for place, low in cast.items():
        if not all(each.isfinite().all() for each in low):
            # 0 times infinity would reach the rows that do not take it.
            raise NotAnAdapter(
                f"holds numbers in {place} that are not finite in {homes[place.part][1]}"
            )
    return cast


def _tensors(path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise NotAnAdapter(f"is damaged: {str(error)[:_MOST_CHARS]}") from None
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise NotAnAdapter(f"holds what is not read here: {str(error)[:_MOST_CHARS]}") from None


def _converted(
    state: dict[str, torch.Tensor], metadata: Mapping[str, str], layers: Layers
) -> dict[Place, LowRank]:
    """The file's tensors by the layers that they change, with alphas in them.

    Raises:
        NotAnAdapter: some are no plain LoRA, or of no layer of this model, or of another shape.
    """
    if foreign := [mark for mark in _FOREIGN if any(mark in name for name in state)]:
        raise NotAnAdapter(f"is no plain LoRA: it holds {', '.join(foreign)}")
    told = _peft_metadata(metadata, layers)
    try:
        named = _by_place(state, layers)
    except Exception as error:
        # Diffusers' converters expect names of their kinds, and raise whatever comes of others.
        logger.debug("not converted", exc_info=error)
        reason = str(error).strip().replace("\n", " ")[: 2 * _MOST_CHARS]
        raise NotAnAdapter(f"is for another model, or no LoRA: {reason}") from None
    found: dict[Place, LowRank] = {}
    unknown: list[str] = []
    for place, pair in named.items():
        if place not in layers.shapes:
            unknown.append(str(place)[:_MOST_CHARS])
        elif len(pair) == 2:
            found[place] = _fitted(place, pair, layers.shapes[place], _alpha(place, told))
        else:
            raise NotAnAdapter(f"is not whole: of {place} it holds one of two matrices")
    if unknown:
        more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
        named_layers = ", ".join(unknown[:_MOST_NAMED])
        raise NotAnAdapter(f"is for another model: there is no layer {named_layers}{more} here")
    if not found:
        raise NotAnAdapter("changes no layer of this model")
    return found


def _by_place(
    state: dict[str, torch.Tensor], layers: Layers
) -> dict[Place, dict[str, torch.Tensor]]:
    """`down` and `up` of each layer, kohya's alphas multiplied into `up`. Raises whatever diffusers raises."""
    state = _with_alphas(state, layers)
    found: dict[Place, dict[str, torch.Tensor]] = {}
    for part in layers.parts:
        own = {
            name.removeprefix(f"{part}."): state.pop(name)
            for name in list(state)
            if name.startswith(f"{part}.")
        }
        for name, tensor in _peft_names(part, own, layers).items():
            path, dot, which = name.rpartition(".lora_")
            if not dot or which not in ("A.weight", "B.weight"):
                raise ValueError(f"it holds {name}")
            kind = "down" if which.startswith("A") else "up"
            found.setdefault(Place(part, path), {})[kind] = tensor
    if state:
        raise ValueError(f"it holds {min(state)}")
    return found


def _with_alphas(state: dict[str, torch.Tensor], layers: Layers) -> dict[str, torch.Tensor]:
    """The tensors as diffusers names them."""
    if layers.network == UNET:
        named, alphas = layers.reader.lora_state_dict(dict(state), unet_config=layers.config)
    elif is_sd3(layers.config):
        named, alphas = layers.reader.lora_state_dict(dict(state)), {}
    else:
        # A converter that would make up one that is missing, where the others' numbers are, which may be nowhere yet.
        ranks = {
            name.replace(_KOHYA_DOWN, ".alpha"): torch.tensor(float(len(tensor)))
            for name, tensor in state.items()
            if name.endswith(_KOHYA_DOWN)
        }
        named, alphas = layers.reader.lora_state_dict(ranks | state, return_alphas=True)
    for down, up, end in ((".down.", ".up.", ".lora."), (".lora_A.", ".lora_B.", ".lora_A.")):
        for name in [name for name in named if down in name]:
            rank, above = len(named[name]), name.replace(down, up)
            # Diffusers' own name for a layer's alpha; that of a text encoder has all of the matrix' name.
            alpha = (alphas or {}).get(name.split(end)[0] + ".alpha", rank)
            named[above] = named[above] * (alpha / rank)
    return dict(named)


def _peft_names(
    part: str, state: dict[str, torch.Tensor], layers: Layers
) -> dict[str, torch.Tensor]:
    if not state:
        return {}
    if part == layers.network:
        named: dict[str, torch.Tensor] = formats.convert_unet_state_dict_to_peft(state)
        return named
    text: dict[str, torch.Tensor] = formats.convert_state_dict_to_peft(
        formats.convert_state_dict_to_diffusers(state)
    )
    if any(place.part == part and place.path.startswith("text_model.") for place in layers.shapes):
        return text
    # Of encoders whose layers have lost this word on the way from one version of transformers to the next.
    return {name.removeprefix("text_model."): tensor for name, tensor in text.items()}


def _fitted(
    place: Place, pair: dict[str, torch.Tensor], shape: torch.Size, alpha: float | None
) -> LowRank:
    """The two matrices of a layer as its weight has them, by the shape of that.

    Raises:
        NotAnAdapter: they do not fit it.
    """
    down, up = pair["down"], pair["up"]
    rank = down.shape[0] if down.ndim else 0
    inputs = shape[1:].numel()
    fits = rank and down.ndim >= 2 and up.ndim >= 2 and down[0].numel() == inputs
    if not fits or up.numel() != shape[0] * rank or up.shape[:2] != (shape[0], rank):
        raise NotAnAdapter(
            f"is for another model: {place} is {tuple(shape)} here, and {tuple(down.shape)} by "
            f"{tuple(up.shape)} there"
        )
    if not (down.is_floating_point() and up.is_floating_point()):
        raise NotAnAdapter(f"holds whole numbers in {place}")
    ones = (1,) * (len(shape) - 2)
    up = up.reshape(shape[0], rank, *ones)
    return LowRank(down.reshape(rank, *shape[1:]), up if alpha is None else up * (alpha / rank))


def _peft_metadata(metadata: Mapping[str, str], layers: Layers) -> dict[str, Any]:
    """What PEFT's configuration says of each part, as diffusers writes it into a file.

    Raises:
        NotAnAdapter: it asks for more than a plain LoRA.
    """
    try:
        told = json.loads(metadata.get(_PEFT_METADATA, "{}"))
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise NotAnAdapter(f"has a {_PEFT_METADATA} that is no JSON object")
    if foreign := [
        mark for mark in _FOREIGN_PEFT for part in layers.parts if told.get(f"{part}.{mark}")
    ]:
        raise NotAnAdapter(f"is no plain LoRA: its configuration has {', '.join(foreign)}")
    return told


def _alpha(place: Place, told: Mapping[str, Any]) -> float | None:
    """A layer's alpha by PEFT's configuration, or None."""
    patterns = told.get(f"{place.part}.alpha_pattern") or {}
    alpha = told.get(f"{place.part}.lora_alpha")
    if isinstance(patterns, dict):
        for name, own in patterns.items():
            if place.path == name or place.path.endswith(f".{name}"):
                alpha = own
                break
    if alpha is not None and not isinstance(alpha, int | float):
        raise NotAnAdapter(f"has the alpha {str(alpha)[:_MOST_CHARS]!r} for {place}")
    return alpha
