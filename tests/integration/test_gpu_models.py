"""The networks that are measured on a GPU have the sizes of the published ones."""

from __future__ import annotations

import pytest
import torch

from loadtests.gpu import models

BF16 = torch.bfloat16


@pytest.mark.parametrize(("kind", "millions"), [("sd15", 859.52), ("sdxl", 2567.46)])
@torch.inference_mode()
def test_a_network_has_the_weights_of_the_published_one_and_takes_what_it_is_given(
    kind: str, millions: float
) -> None:
    unet = models.network(kind, "true", "meta", BF16)
    assert sum(weights.numel() for weights in unet.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.01
    )
    given = models.inputs(unet, 2)
    assert unet(**given, return_dict=False)[0].shape == given["sample"].shape


def test_the_decoder_has_the_weights_of_the_published_one() -> None:
    vae = models.autoencoder("sd15", "true", "meta", BF16)
    assert sum(weights.numel() for weights in vae.parameters()) / 1e6 == pytest.approx(
        83.65, abs=0.01
    )
