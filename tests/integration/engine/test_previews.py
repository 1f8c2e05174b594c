"""The map from latents to previews: learned from small copies of a few pictures, and then used."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from text2image.engine.models.previews import LEARNED, Projection

CHANNELS, SIDE, SCALE = 4, 16, 8


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and the pictures that a linear decoder makes of them."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.rand((1, CHANNELS, SIDE, SIDE), generator=generator)
    return latents, latents[:, :3].repeat_interleave(SCALE, -1).repeat_interleave(SCALE, -2)


class Copies(TorchFunctionMode):
    """Notes the numbers in each tensor that is copied to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cpu:
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_a_few_pictures_are_enough_to_preview_others() -> None:
    projection = Projection(CHANNELS)
    for seed in range(4):
        projection.learn(*drawn(seed))
    latents, _ = drawn(100)
    assert torch.allclose(projection.draw(latents).movedim(-1, 0), latents[0, :3], atol=0.02)


def test_no_whole_picture_leaves_the_device() -> None:
    projection = Projection(CHANNELS)
    with Copies() as copies:
        projection.learn(*drawn(0))
    assert copies.sizes
    assert max(copies.sizes) <= CHANNELS * SIDE * SIDE


def test_what_is_learned_once_is_not_learned_again() -> None:
    projection = Projection(CHANNELS)
    for seed in range(LEARNED):
        projection.learn(*drawn(seed))
    latents, pictures = drawn(100)
    before = projection.draw(latents)
    with Copies() as copies:
        projection.learn(latents, 1 - pictures)
    assert not copies.sizes
    assert torch.equal(projection.draw(latents), before)
