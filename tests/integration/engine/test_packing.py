"""Rearranged weights change how fast a CPU draws, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.integration.engine.conftest import DEVICE, settings_for
from text2image.engine.models.contract import Model
from text2image.engine.models.loading import load_model
from text2image.engine.runtimes import packing
from text2image.engine.runtimes.packing import MOST_ORDERS, PackedConv2d, pack

# Sums of a few hundred products in fp32, in another order.
TOLERANCE = 1e-5
SIZES = [(16, 16), (8, 8), (12, 20), (16, 16), (32, 24), (5, 7), (64, 64)]


def convolutions() -> dict[str, nn.Conv2d]:
    return {
        "3x3": nn.Conv2d(64, 48, 3, padding=1),
        "1x1": nn.Conv2d(96, 32, 1),
        "halves": nn.Conv2d(32, 64, 3, stride=2, padding=1),
        "in groups": nn.Conv2d(32, 32, 3, padding=1, groups=4),
        "without bias": nn.Conv2d(3, 32, 3, padding=1, bias=False),
        "dilated": nn.Conv2d(32, 32, 3, padding=2, dilation=2),
    }


@pytest.mark.parametrize("kind", convolutions())
@torch.inference_mode()
def test_every_shape_gives_what_the_plain_convolution_gives(kind: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(convolutions()[kind]).to(memory_format=torch.channels_last)
    packed = copy.deepcopy(network)
    assert pack(packed, free=None)
    for rows in (1, 2, 3, 8, 1):
        for height, width in SIZES:
            inputs = torch.randn(rows, network[0].in_channels, height, width)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            expected = network(inputs)
            for _ in range(3):
                given = packed(inputs)
                assert (expected - given).abs().max() < TOLERANCE
                assert given.stride() == expected.stride(), "the next layer finds its channels last"


@torch.inference_mode()
def test_many_sizes_do_not_take_more_and_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MOST_ORDERS", 1)
    plain = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    packed = PackedConv2d(plain)
    for rows in (1, 2):
        for height, width in SIZES:
            inputs = torch.randn(rows, 64, height, width)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
            for _ in range(3):
                assert (plain(inputs) - packed(inputs)).abs().max() < TOLERANCE
    assert len(packed._by_order) == 1


@torch.inference_mode()
def test_a_size_that_comes_once_leaves_nothing_behind() -> None:
    packed = PackedConv2d(nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last))
    inputs = torch.randn(1, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    packed(inputs)
    assert not packed._by_order
    packed(inputs)
    assert len(packed._by_order) == 1


def packed_in(part: Any) -> int:
    return sum(isinstance(module, PackedConv2d) for module in part.modules())


@pytest.mark.parametrize("runtime", ["torch"], indirect=True)
@pytest.mark.skipif(DEVICE != "cpu", reason="it is for a CPU's kernels")
def test_a_model_on_a_cpu_is_packed_as_far_as_it_draws(embedded: Any) -> None:
    assert packed_in(embedded._networks._unet)
    assert packed_in(embedded._networks._vae.decoder)
    assert not packed_in(embedded._networks._vae.encoder)


def test_a_model_in_half_precision_stays_as_it_is() -> None:
    settings = settings_for("embedded").model_copy(update={"dtype": "bfloat16"})
    model: Model = load_model(settings, 0, lambda detail: None)
    assert not packed_in(model._networks._unet)  # type: ignore[attr-defined]


def test_nothing_is_packed_where_memory_is_short() -> None:
    network = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1))
    needed = MOST_ORDERS * 64 * 64 * 9 * 4
    assert not pack(network, free=needed)
    assert not packed_in(network)
    assert pack(network, free=10 * needed)
