"""What the trainer builds before it trains."""

from __future__ import annotations

import torch

from training import autoencoder
from training.decoder import BLOCKS, deepened


@torch.inference_mode()
def test_a_deeper_decoder_begins_by_drawing_what_the_former_one_does() -> None:
    torch.manual_seed(0)
    former = autoencoder.build()
    model = deepened(former)
    latents = torch.randn(2, autoencoder.CHANNELS, 16, 16)
    assert tuple(model.config.num_decoder_blocks) == BLOCKS
    assert len(model.decoder.layers) > len(former.decoder.layers)
    assert torch.equal(model.decode(latents).sample, former.decode(latents).sample)
