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
# Of SD3; of Flux diffusers reads none for the second encoder.
FLOW_PARTS = ("transformer", "text_encoder", "text_encoder_2")
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
            prefix = "text_model." if part.startswith("text") and path.startswith("encoder") else ""
            down = torch.randn(size, *layer.weight.shape[1:], generator=random)
            ones = (1,) * (layer.weight.ndim - 2)
            up = torch.randn(len(layer.weight), size, *ones, generator=random)
            name = f"{part}.{prefix}{path}"
            file[f"{name}.lora_A.weight"] = down * 0.3 / layer.weight[0].numel() ** 0.5
            file[f"{name}.lora_B.weight"] = up * 0.3
    return file


def flux_files(pipeline: Any, *, rank: int, seed: int) -> tuple[Tensors, Tensors]:
    """Two adapters of a Flux with transformer and text encoder: in the names of kohya's scripts, and in XLabs'.

    The layers of queries, keys and values are one in both. Kohya's alphas are half of the ranks.
    """
    random = torch.Generator().manual_seed(seed)
    width = pipeline.transformer.inner_dim
    kohya: Tensors = {}
    xlabs: Tensors = {}

    def low(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        down = torch.randn(rank, inputs, generator=random) * 0.3 / inputs**0.5
        return down, torch.randn(outputs, rank, generator=random) * 0.3

    for number in range(len(pipeline.transformer.transformer_blocks)):
        block = f"lora_unet_double_blocks_{number}"
        for layer, outputs, inputs in (
            ("img_attn_qkv", 3 * width, width),
            ("txt_attn_proj", width, width),
            ("img_mlp_0", 4 * width, width),
        ):
            down, up = low(outputs, inputs)
            kohya[f"{block}_{layer}.lora_down.weight"] = down
            kohya[f"{block}_{layer}.lora_up.weight"] = up
            kohya[f"{block}_{layer}.alpha"] = torch.tensor(rank / 2)
        for layer, outputs in (("qkv_lora1", 3 * width), ("proj_lora2", width)):
            down, up = low(outputs, width)
            xlabs[f"double_blocks.{number}.processor.{layer}.down.weight"] = down
            xlabs[f"double_blocks.{number}.processor.{layer}.up.weight"] = up
    config = pipeline.text_encoder.config
    for number in range(config.num_hidden_layers):
        name = f"lora_te1_text_model_encoder_layers_{number}_mlp_fc1"
        down, up = low(config.intermediate_size, config.hidden_size)
        kohya[f"{name}.lora_down.weight"], kohya[f"{name}.lora_up.weight"] = down, up
        kohya[f"{name}.alpha"] = torch.tensor(rank / 2)
    return kohya, xlabs


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
