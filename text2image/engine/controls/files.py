"""ControlNets' files: whether a model can be steered by one, by its header alone, and the network itself.

A ControlNet (Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models") is a copy of the first
half of a U-Net. What it gives is added to that half's outputs, so both must have the same shapes. Read are folders in
diffusers' format, and single files by the names of diffusers or of the original training code, which diffusers'
converter translates. Only safetensors, which holds numbers and no code.
"""

from __future__ import annotations

import inspect as signatures
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors import SafetensorError, safe_open
from torch import nn

from text2image.engine.layouts.headers import Header

logger = logging.getLogger(__name__)

CONFIG = "config.json"
# Weights of a folder, the first that is there.
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
_CLASS = "ControlNetModel"
_FIELDS = frozenset(signatures.signature(ControlNetModel.__init__).parameters) - {"self"}
# Larger numbers in a configuration are no network's, and would take for ever to look at.
_MOST_LAYERS, _MOST_CHANNELS, _MOST_CONFIG_BYTES = 64, 1 << 16, 1 << 20
_MOST_CHARS = 80
_EMBEDDING = "controlnet_cond_embedding"
# What fills a text of so many numbers: by its width the family that a net was made for.
_BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


class NotAControlNet(Exception):
    """This model cannot be steered by a file; the text says why, and goes on from the file's name."""


class Target(NamedTuple):
    """What a ControlNet must fit: the U-Net's configuration, and pixels of a side to a latent pixel."""

    unet: Mapping[str, Any]
    scale: int


@dataclass(frozen=True, slots=True, eq=False)
class Net:
    """A ControlNet that is loaded. Its `embedding` of control pictures is apart, as it is the same in all passes.

    Attributes:
        flips: whether it was trained with blue first.
        takes_sizes: whether it is told of pooled texts and sizes, as SDXL's are.
    """

    network: Any
    embedding: nn.Module
    flips: bool
    takes_sizes: bool

    def embedded(self, picture: torch.Tensor) -> torch.Tensor:
        """What it makes of a control picture (1, 3, H, W) from 0 to 1: (1, D, h, w)."""
        return self.embedding(picture.flip(1) if self.flips else picture)  # type: ignore[no-any-return]


def inspect(header: Header, told: Mapping[str, Any] | None, target: Target) -> dict[str, Any]:
    """The configuration of a net, by its header and what its folder tells, if it is one that fits the target.

    Raises:
        NotAControlNet: it is none, or is for another model.
    """
    state = {name: torch.empty(each.shape, device="meta") for name, each in header.tensors.items()}
    try:
        _check_width(state, target)
        found = _converted(state, target.unet)
        config = _from_file(told, target) if told is not None else _derived(found, target)
        with torch.device("meta"):
            network = ControlNetModel(**config)
    except NotAControlNet:
        raise
    except Exception as error:
        # Of configurations and names that are none of a ControlNet's.
        logger.debug("not understood", exc_info=error)
        reason = str(error).strip().replace("\n", " ")[: 2 * _MOST_CHARS]
        raise NotAControlNet(f"is no ControlNet that is known here: {reason}") from None
    _check_shapes(network, {name: each.shape for name, each in found.items()})
    _check_outputs(network, target)
    return config


def read(path: Path, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> Net:
    """The network of a file that `inspect` found to fit.

    Raises:
        NotAControlNet: the file is another one by now, or holds numbers that are not finite.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118
        with torch.device("meta"):
            network = ControlNetModel(**{**config, "controlnet_conditioning_channel_order": "rgb"})
        network.load_state_dict(_converted(state, config), assign=True)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise NotAControlNet(f"is damaged: {str(error)[:_MOST_CHARS]}") from None
    if not all(each.isfinite().all() for each in network.parameters()):
        # 0 times infinity would reach the rows that it does not steer.
        raise NotAControlNet(f"holds numbers that are not finite in {dtype}")
    network = network.eval().requires_grad_(False)
    network = network.to(device=device, memory_format=torch.channels_last)
    embedding = network.controlnet_cond_embedding
    network.controlnet_cond_embedding = nn.Identity()
    return Net(
        network,
        embedding,
        flips=config.get("controlnet_conditioning_channel_order") == "bgr",
        takes_sizes=config.get("addition_embed_type") == "text_time",
    )


def config_in(path: Path) -> dict[str, Any]:
    """What a folder's configuration tells.

    Raises:
        NotAControlNet: it is none.
        OSError: it cannot be read.
    """
    if path.stat().st_size > _MOST_CONFIG_BYTES:
        raise NotAControlNet(f"has a {CONFIG} that is none")
    try:
        told = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise NotAControlNet(f"has a {CONFIG} that is no JSON object")
    if told.get("_class_name") != _CLASS:
        kind = str(told.get("_class_name"))[:_MOST_CHARS]
        raise NotAControlNet(f"is a {kind}; only {_CLASS} is drawn with here")
    return told


def base_of(header: Header) -> str:
    """The family that a net was made for, as its shapes tell; empty if they do not."""
    width = _text_width({name: each.shape for name, each in header.tensors.items()})
    return _BASES.get(width or 0, "")


def _text_width(shapes: Mapping[str, Any]) -> int | None:
    """Numbers of a token that its layers of attention read."""
    widths = (
        shape[1]
        for name, shape in shapes.items()
        if name.endswith("attn2.to_k.weight") and len(shape) == 2
    )
    return next(widths, None)


def _check_width(state: Mapping[str, torch.Tensor], target: Target) -> None:
    width = _text_width({name: each.shape for name, each in state.items()})
    expected = target.unet["cross_attention_dim"]
    if width is not None and width != expected:
        base = _BASES.get(width, "another model")
        raise NotAControlNet(
            f"is for {base}: it reads texts of {width} numbers a token, and this model of {expected}"
        )


def _from_file(told: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The configuration of a folder, as far as it is safe to build."""
    config = {name: value for name, value in told.items() if name in _FIELDS}
    if config.get("global_pool_conditions"):
        raise NotAControlNet("pools its output, which takes guess mode; that is not drawn here")
    if config.get("conditioning_channels", 3) != 3:
        raise NotAControlNet("takes no pictures of three colours")
    for name in ("block_out_channels", "layers_per_block"):
        own, expected = config.get(name), target.unet[name]
        own = list(own) if isinstance(own, list | tuple) else own
        expected = list(expected) if isinstance(expected, list | tuple) else expected
        if own is not None and own != expected:
            raise NotAControlNet(
                f"is for another model: it has {name} {str(own)[:_MOST_CHARS]}, and this {expected}"
            )
        config[name] = target.unet[name]
    _check_numbers(config)
    return config


def _check_numbers(config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        most = _MOST_LAYERS if "layers" in name or "num_class" in name else _MOST_CHANNELS
        for number in numbers:
            odd = isinstance(number, list | dict) or (
                isinstance(number, int | float) and not 0 <= number <= most
            )
            if len(numbers) > _MOST_LAYERS or odd:
                raise NotAControlNet(
                    f"has {name} {str(value)[:_MOST_CHARS]}, which is no network's"
                )


def _derived(state: Mapping[str, torch.Tensor], target: Target) -> dict[str, Any]:
    """The configuration of a single file: that of the U-Net that it is to be a copy of."""
    config = {name: target.unet[name] for name in _FIELDS & set(target.unet)}
    # Networks for inpainting take more, and what steers them does not.
    config["in_channels"] = target.unet["out_channels"]
    names = f"{_EMBEDDING}.conv_in.weight", f"{_EMBEDDING}.blocks.{{}}.weight"
    if names[0] in state:
        channels = [len(state[names[0]])]
        while (place := names[1].format(2 * len(channels) - 1)) in state:
            channels.append(len(state[place]))
        config["conditioning_embedding_out_channels"] = channels
    return config


def _converted(state: dict[str, torch.Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors by diffusers' names."""
    converted: dict[str, Any] = convert_controlnet_checkpoint(dict(state), config)
    return {name: each for name, each in converted.items() if each is not None}


def _check_shapes(network: nn.Module, found: Mapping[str, torch.Size]) -> None:
    expected = {name: each.shape for name, each in network.state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise NotAControlNet(f"is not whole, or none: it lacks {name}")
        if name not in expected:
            raise NotAControlNet(f"is no {_CLASS}: it holds {name[:_MOST_CHARS]}")
        if found[name] != expected[name]:
            raise NotAControlNet(
                f"is for another model: {name} is {tuple(found[name])}, and here {tuple(expected[name])}"
            )


def _check_outputs(network: Any, target: Target) -> None:
    """Whether what it gives can be added to what the U-Net's first half gives."""
    with torch.device("meta"):
        steered = ControlNetModel(
            **{name: target.unet[name] for name in _FIELDS & set(target.unet)}
        )
    outputs, expected = (
        [each.out_channels for each in (*net.controlnet_down_blocks, net.controlnet_mid_block)]
        for net in (network, steered)
    )
    reduced = 2 ** (len(network.config.conditioning_embedding_out_channels) - 1)
    inputs = network.config.in_channels, target.unet["out_channels"]
    if outputs != expected or inputs[0] != inputs[1] or reduced != target.scale:
        raise NotAControlNet("is for another model: its outputs have other shapes")
    sizes = network.config.addition_embed_type
    if sizes not in (None, target.unet["addition_embed_type"]):
        raise NotAControlNet(f"is for another model: it takes {str(sizes)[:_MOST_CHARS]}")
