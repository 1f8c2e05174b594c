"""Small upscalers with random weights, in the files that people have them in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.init_images import picture

FILTERS = 8


def make_upscaler(path: Path, scale: int = 2, seed: int = 0) -> Path:
    """A small ESRGAN that enlarges sides by `scale`; its pictures have all tones."""
    # spandrel is read by the server's own way of importing it, which does without torchvision.
    from text2image.engine.upscalers.files import registry

    registry()
    from spandrel.architectures.ESRGAN import ESRGAN

    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        network = ESRGAN(num_filters=FILTERS, num_blocks=1, scale=scale)
        pixels = torch.from_numpy(np.asarray(picture()).copy()).movedim(-1, 0)[None] / 255
        drawn = network(pixels)
        last = network.model[-1]
        for channel in range(3):
            spread, mean = drawn[0, channel].std() * 5, drawn[0, channel].mean()
            last.bias[channel] += spread / 2 - mean
            last.weight[channel] /= spread
            last.bias[channel] /= spread
        state = {name: each.clone() for name, each in network.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"params_ema": state}, path)
    return path
