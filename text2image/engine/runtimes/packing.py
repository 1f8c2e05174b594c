"""Convolutions whose weights lie in memory as a CPU's kernels read them.

PyTorch keeps weights in one order and lets oneDNN rearrange them in every call: a sixth of a small step. Here that is
done once for each order that oneDNN asks for. The kernels are the same, and so are the pictures.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import nn

# Orders that a convolution is kept in besides its own: those of one row and of several at the model's own size, which
# the warm-up meets first. Other sizes that ask for more have weights rearranged in every call, as without all this.
MOST_ORDERS = 2
# Orders take this share of the free memory at the most, or nothing is packed.
MEMORY_SHARE = 0.25
# Shapes whose order is remembered.
_MOST_SHAPES = 1024


class PackedConv2d(nn.Module):
    """A convolution in place of another with the same weights."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.plain = convolution
        self._by_shape: dict[torch.Size, torch.Tensor | None] = {}
        self._by_order: dict[bytes, torch.Tensor] = {}
        self._met: set[bytes] = set()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(rows, channels, h, w) to (rows, channels, h, w)."""
        shape = inputs.shape
        weight = self._by_shape[shape] if shape in self._by_shape else self._packed(shape)
        plain = self.plain
        if weight is None:
            output: torch.Tensor = plain(inputs)
        else:
            output = torch.ops.mkldnn._convolution_pointwise(
                inputs,
                weight,
                plain.bias,
                plain.padding,
                plain.stride,
                plain.dilation,
                plain.groups,
                "none",
                [],
                "",
            )
        return output

    def _packed(self, shape: torch.Size) -> torch.Tensor | None:
        """The weights in the order that suits inputs of this shape; None for as they are.

        An order is kept from the second time on that it is asked for, so that a picture for which there is not enough
        memory leaves nothing behind.
        """
        plain = self.plain
        weight: torch.Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            plain.weight, plain.padding, plain.stride, plain.dilation, plain.groups, [*shape]
        )
        order = bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(weight).tolist())
        if order not in self._by_order and len(self._by_order) < MOST_ORDERS:
            if order not in self._met:
                self._met.add(order)
                return weight
            self._by_order[order] = weight
        if len(self._by_shape) >= _MOST_SHAPES:
            self._by_shape.clear()
        self._by_shape[shape] = self._by_order.get(order)
        return self._by_shape[shape]


def pack(*parts: nn.Module, free: int | None) -> bool:
    """Replaces the convolutions of networks in fp32 on a CPU; they must be channels last. Says whether it did.

    Args:
        parts: networks that nobody trains or moves any more.
        free: bytes of memory that are free, where that is known.
    """
    places = [
        (module, name, child)
        for part in parts
        for module in part.modules()
        for name, child in module.named_children()
        if _can_be_packed(child)
    ]
    needed = MOST_ORDERS * sum(convolution.weight.nbytes for _, _, convolution in places)
    if free is not None and needed > MEMORY_SHARE * free:
        return False
    for module, name, convolution in places:
        setattr(module, name, PackedConv2d(convolution))
    return bool(places)


def _can_be_packed(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return (
        type(module) is nn.Conv2d
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
