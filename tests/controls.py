"""Random ControlNets of a pipeline, and the pictures that they steer by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel

from text2image.core.init_image import InitImage

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


def pixels(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A picture of a few rectangles, (height, width, 3)."""
    random = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.uint8)
    for _ in range(4):
        left, top = random.integers(0, width // 2), random.integers(0, height // 2)
        picture[top : top + height // 2, left : left + width // 2] = random.integers(0, 255, 3)
    return picture


def control_picture(width: int, height: int, seed: int = 0) -> InitImage:
    return InitImage.of(width, height, pixels(width, height, seed).tobytes())
