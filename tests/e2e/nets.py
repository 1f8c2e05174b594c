"""A random ControlNet for the embedded model, made of copies of its weights, as training one begins. Needs no torch."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from text2image.core.settings import MODELS

UNET = MODELS / "embedded" / "unet"
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Of what reads the control picture; three of its convolutions halve it.
_READING = (8, 8, 16, 16)
_COPIED = ("conv_in.", "time_embedding.", "add_embedding.", "down_blocks.", "mid_block.")


def make_net(folder: Path, *, seed: int = 0) -> Path:
    """Writes one to a folder, in diffusers' format."""
    random = np.random.default_rng(seed)
    told = json.loads((UNET / "config.json").read_text())
    weights = {
        name: each.astype(np.float32)
        for name, each in load_file(UNET / WEIGHTS).items()
        if name.startswith(_COPIED)
    }

    def add(name: str, outputs: int, inputs: int, side: int, spread: float) -> None:
        shape = (outputs, inputs, side, side)
        scaled = random.normal(size=shape) * spread / (inputs * side * side) ** 0.5
        weights[f"{name}.weight"] = scaled.astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(outputs, np.float32)

    widths: list[int] = told["block_out_channels"]
    outputs = [widths[0]]
    for place, width in enumerate(widths):
        outputs += [width] * (told["layers_per_block"] + (place < len(widths) - 1))
    for place, width in enumerate(outputs):
        add(f"controlnet_down_blocks.{place}", width, width, 1, 0.3)
    add("controlnet_mid_block", widths[-1], widths[-1], 1, 0.3)
    add("controlnet_cond_embedding.conv_in", _READING[0], 3, 3, 2.0)
    for place, (inputs, after) in enumerate(pairwise(_READING)):
        add(f"controlnet_cond_embedding.blocks.{2 * place}", inputs, inputs, 3, 2.0)
        add(f"controlnet_cond_embedding.blocks.{2 * place + 1}", after, inputs, 3, 2.0)
    add("controlnet_cond_embedding.conv_out", widths[0], _READING[-1], 3, 2.0)
    folder.mkdir(parents=True)
    save_file(weights, folder / WEIGHTS)
    own = {
        "_class_name": "ControlNetModel",
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": _READING,
    }
    (folder / "config.json").write_text(json.dumps({**told, **own}))
    return folder
