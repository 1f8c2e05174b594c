"""The configurations of a Stable Diffusion checkpoint in a single file, read from the names and shapes of its weights.

The original training code names a U-Net's layers `model.diffusion_model.input_blocks.4.1...`, without configuration.
All but the attention heads follows from which layers there are and how wide they are; heads are those of the published
models: 8 in each layer of Stable Diffusion 1.x, 64 channels each in 2.x and SDXL. Names as in diffusers'
`loaders/single_file_utils.py`, configurations as its `create_unet_diffusers_config_from_ldm` makes them. No torch is
needed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]

UNET = "model.diffusion_model."
VAE = "first_stage_model."
# CLIP as transformers names its layers, and as OpenCLIP does.
CLIP = "cond_stage_model.transformer.text_model."
CLIP_XL = "conditioner.embedders.0.transformer.text_model."
OPEN_CLIP = "cond_stage_model.model."
OPEN_CLIP_XL = "conditioner.embedders.1.model."

_HEADS = 8
_HEAD_CHANNELS = 64
# What Stable Diffusion 2.x uses of its encoder's 24 layers: it conditions on the output of the layer before the last.
_PENULTIMATE_LAYERS = 23
_TIME_EMBEDDING = 256
_START, _END = 49406, 49407


def under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """What begins with a prefix, without it."""
    return {
        name.removeprefix(prefix): shape
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }


def _numbers(names: Iterable[str], prefix: str) -> list[int]:
    """The numbers that follow a prefix, each once."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return sorted({int(match[1]) for name in names if (match := pattern.match(name))})


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """The configuration of a `UNet2DConditionModel`, without its `sample_size`.

    Raises:
        KeyError: a layer is missing that tells of it.
    """
    net = under(shapes, UNET)
    levels = _levels(net)
    channels = [net[f"input_blocks.{level[0]}.0.out_layers.3.weight"][0] for level in levels]
    depths = [
        max(len(_numbers(net, f"input_blocks.{block}.1.transformer_blocks.")) for block in level)
        for level in levels
    ]
    middle = len(_numbers(net, "middle_block.1.transformer_blocks."))
    attention = next(name for name in net if name.endswith("attn2.to_k.weight"))
    linear = len(net[attention.partition("transformer_blocks.")[0] + "proj_in.weight"]) == 2
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": net["input_blocks.0.0.weight"][1],
        "out_channels": net["out.2.weight"][0],
        "block_out_channels": channels,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in depths],
        "up_block_types": [
            "CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(depths)
        ],
        "layers_per_block": len(levels[0]),
        "cross_attention_dim": net[attention][1],
        "use_linear_projection": linear,
        "attention_head_dim": [each // _HEAD_CHANNELS for each in channels] if linear else _HEADS,
        # The block in the middle is as deep as the last one before it.
        "transformer_layers_per_block": [max(1, each) for each in (*depths[:-1], middle)],
    }
    if "label_emb.0.0.weight" in net:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME_EMBEDDING,
            "projection_class_embeddings_input_dim": net["label_emb.0.0.weight"][1],
        }
    return config


def _levels(net: Shapes) -> list[list[int]]:
    """The numbers of the input blocks at each resolution, without those that halve it."""
    levels: list[list[int]] = [[]]
    for block in _numbers(net, "input_blocks.")[1:]:
        if f"input_blocks.{block}.0.op.weight" in net:
            levels.append([])
        else:
            levels[-1].append(block)
    if not all(levels):
        raise KeyError("input_blocks")
    return levels


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """The configuration of an `AutoencoderKL`, without `sample_size` and `scaling_factor`.

    Raises:
        KeyError: a layer is missing that tells of it.
    """
    decoder = under(shapes, f"{VAE}decoder.")
    levels = _numbers(decoder, "up.")
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": decoder["conv_out.weight"][0],
        "block_out_channels": [decoder[f"up.{each}.block.0.conv1.weight"][0] for each in levels],
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "latent_channels": decoder["conv_in.weight"][1],
        # A decoder has one more of them.
        "layers_per_block": len(_numbers(decoder, "up.0.block.")) - 1,
    }


def clip_config(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """The configuration of a `CLIPTextModel` whose layers are named as in transformers.

    Raises:
        KeyError: a layer is missing that tells of it.
    """
    net = under(shapes, prefix)
    vocabulary, width = net["embeddings.token_embedding.weight"]
    return {
        **_text_config(vocabulary, width),
        "architectures": ["CLIPTextModel"],
        "max_position_embeddings": net["embeddings.position_embedding.weight"][0],
        "num_hidden_layers": len(_numbers(net, "encoder.layers.")),
        "intermediate_size": net["encoder.layers.0.mlp.fc1.weight"][0],
        "hidden_act": "quick_gelu",
        "projection_dim": width,
    }


def open_clip_config(shapes: Shapes, prefix: str, *, projected: bool) -> dict[str, Any]:
    """The configuration of a `CLIPTextModel` whose layers are named as in OpenCLIP.

    Args:
        projected: whether it is one with a projection (SDXL), which is made of all layers.

    Raises:
        KeyError: a layer is missing that tells of it.
    """
    net = under(shapes, prefix)
    vocabulary, width = net["token_embedding.weight"]
    layers = len(_numbers(net, "transformer.resblocks."))
    return {
        **_text_config(vocabulary, width),
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "max_position_embeddings": net["positional_embedding"][0],
        "num_hidden_layers": layers if projected else min(layers, _PENULTIMATE_LAYERS),
        "intermediate_size": net["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "hidden_act": "gelu",
        "projection_dim": net["text_projection"][1] if projected else 512,
    }


def _text_config(vocabulary: int, width: int) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_attention_heads": max(1, width // _HEAD_CHANNELS),
        "bos_token_id": _START,
        "eos_token_id": _END,
    }
