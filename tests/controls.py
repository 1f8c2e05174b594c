"""Random ControlNets of a pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

CHANNELS = (8, 8, 16, 16)


def invent(unet: Any, *, seed: int, **more: Any) -> Any:
    """A net of a U-Net's kind that says much from the first step on."""
    torch.manual_seed(seed)
    given = {"conditioning_embedding_out_channels": CHANNELS, **more}
    net = ControlNetModel.from_unet(unet, **given)
    zeroed = [*net.controlnet_down_blocks, net.controlnet_mid_block]
    reading = [each for each in net.controlnet_cond_embedding.modules() if hasattr(each, "weight")]
    with torch.no_grad():
        for layer in zeroed:
            layer.weight.normal_(std=0.2)
        for layer in reading:
            # So that what the picture shows reaches the end.
            layer.weight.normal_(std=2.0 / layer.weight[0].numel() ** 0.5)
    return net.eval()


def save(net: Any, folder: Path, name: str) -> Path:
    """Writes a net as diffusers does, in a folder of this name."""
    path = folder / name
    net.save_pretrained(path)
    return path
