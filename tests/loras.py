"""Random adapters of a pipeline, in the formats that people have them in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import nn

PARTS = ("unet", "text_encoder", "text_encoder_2")
Tensors = dict[str, torch.Tensor]


def invent(
    pipeline: Any, *, rank: int, seed: int, convs: int = 0, parts: tuple[str, ...] = PARTS
) -> Tensors:
    """An adapter in the names of PEFT; `convs` is the rank of the U-Net's layers outside of attention."""
    random, file = torch.Generator().manual_seed(seed), {}
    for part in parts:
        network = getattr(pipeline, part, None) or nn.Module()
        for path, layer in network.named_modules():
            size = convs if part == "unet" and "attentions" not in path else rank
            # Diffusers' reader of kohya's format mangles the name of the last.
            left_out = path == "text_projection" or "add_embedding" in path
            if not size or left_out or not isinstance(layer, nn.Linear | nn.Conv2d):
                continue
            prefix = "text_model." if part != "unet" and path.startswith("encoder") else ""
            down = torch.randn(size, *layer.weight.shape[1:], generator=random)
            ones = (1,) * (layer.weight.ndim - 2)
            up = torch.randn(len(layer.weight), size, *ones, generator=random)
            name = f"{part}.{prefix}{path}"
            file[f"{name}.lora_A.weight"] = down * 0.3 / layer.weight[0].numel() ** 0.5
            file[f"{name}.lora_B.weight"] = up * 0.3
    return file


def as_kohya(file: Mapping[str, torch.Tensor], share: float = 0.5) -> Tensors:
    """The same in the names of kohya's scripts, with alphas of this share of the ranks."""
    named: Tensors = convert_state_dict_to_kohya(dict(file))
    alphas = {name: value * share for name, value in named.items() if name.endswith(".alpha")}
    return named | alphas


def save(folder: Path, name: str, file: Mapping[str, torch.Tensor], **metadata: str) -> Path:
    """Writes an adapter under this name."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in file.items()}, path, metadata)
    return path
