"""What the trainer builds before it trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from training import adopt, autoencoder, unet
from training.decoder import BLOCKS, deepened
from training.painter import laid_over, luma, tint
from training.scenes import BEHIND, Scene
from training.vocabulary import COLOURS

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


def test_a_scene_is_told_in_numbers_of_which_zero_is_none() -> None:
    assert Scene((7,)).codes == (7, 0, 0, 0, 0)
    every = Scene((7, 3), BEHIND[0], next(iter(COLOURS)), "tiny")
    assert every.codes == (7, 4, 1, 1, 1)


def test_a_tint_gives_the_colour_and_keeps_the_shading() -> None:
    shades = torch.linspace(0.2, 0.9, 16).repeat(16, 1)
    sprites = torch.stack([shades, shades, shades, torch.ones_like(shades)])[None]
    red = tint(sprites, torch.tensor([[0.9, 0.1, 0.1]]))[0]
    assert (red[0] > red[1] + 0.1).all()
    assert (luma(red[:3]).diff(dim=1) > 0).all()
    assert torch.equal(red[3], sprites[0, 3])


def test_a_sprite_lies_where_it_belongs_and_lets_the_background_through() -> None:
    pictures = torch.full((2, 3, 128, 128), 200.0)
    sprites = torch.zeros(2, 4, 64, 64)
    sprites[:, 3, 16:48, 16:48] = 1  # black in the middle, transparent around
    painted = laid_over(pictures, sprites, torch.tensor([0, 64]), torch.tensor([32, 24]))
    black = (painted == 0).all(1)
    assert black[0, 48:80, 16:48].all()
    assert black[1, 40:72, 80:112].all()
    assert black.sum().item() == 2 * 32 * 32


def test_of_two_crops_of_a_picture_the_livelier_one_is_taken() -> None:
    torch.manual_seed(0)
    pictures = torch.zeros(64, 3, 128, 128)
    pictures[:, :, :64] = torch.rand(64, 3, 64, 128)
    cut = autoencoder.crops(pictures)
    assert cut.shape == (64, 3, 64, 64)
    assert (cut.flatten(1).var(1) > 0).float().mean() > 0.95
