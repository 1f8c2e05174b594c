"""What the trainer builds before it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from training import adopt, autoencoder, unet
from training.decoder import BLOCKS, deepened

PIPELINE = Path(__file__).parents[2] / "models" / "embedded"


@torch.inference_mode()
def test_a_deeper_decoder_begins_by_drawing_what_the_former_one_does() -> None:
    torch.manual_seed(0)
    former = autoencoder.build()
    model = deepened(former)
    latents = torch.randn(2, autoencoder.CHANNELS, 16, 16)
    assert tuple(model.config.num_decoder_blocks) == BLOCKS
    assert len(model.decoder.layers) > len(former.decoder.layers)
    assert torch.equal(model.decode(latents).sample, former.decode(latents).sample)


@torch.inference_mode()
def test_training_can_go_on_from_the_committed_weights() -> None:
    theirs = UNet2DConditionModel.from_pretrained(PIPELINE / "unet", torch_dtype=torch.float32)
    model = unet.build().eval()
    adopt.take_unet(model, theirs)
    noisy, prompt = torch.randn(2, autoencoder.CHANNELS, 16, 16), torch.randn(2, 24, 192)
    drawn = [m(noisy, 500, prompt).sample for m in (model, theirs.eval())]
    torch.testing.assert_close(*drawn)


def test_training_refuses_weights_of_another_design() -> None:
    other = unet.build(layers_per_block=2)
    with pytest.raises(ValueError, match="another design"):
        adopt.take_unet(unet.build(), other)
