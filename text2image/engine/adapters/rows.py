"""Rows of one forward pass, each with its own adapters at its own weights.

A layer's output is that of its own weights, which nobody changes, and the low-rank terms of all adapters of the batch,
side by side as one: a table (rows, ranks) says how much of each rank a row takes. Only layers that some adapter of the
batch changes have hooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.hooks import RemovableHandle

from text2image.engine import devices
from text2image.engine.adapters.files import LowRank, Place
from text2image.engine.runtimes.packing import PackedConv2d


@dataclass(frozen=True, eq=False)
class Adapter:
    """A loaded adapter, compared by identity: what it adds to each layer that it changes."""

    name: str
    layers: Mapping[Place, LowRank]

    @cached_property
    def parts(self) -> frozenset[str]:
        """The parts of the pipeline that it changes."""
        return frozenset(place.part for place in self.layers)


# What a row takes.
Weights = Mapping[Adapter, float]


class AdapterRows:
    """Hooks on the layers of some parts of a pipeline. Called from the engine's thread alone."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self._layers = {
            Place(part, path): layer
            for part, network in parts.items()
            for path, layer in network.named_modules()
        }
        self._worn: tuple[Adapter, ...] = ()
        self._hooks: list[RemovableHandle] = []

    def wear(self, rows: Sequence[Weights], device: torch.device, dtype: torch.dtype) -> None:
        """Says for each row of the passes to come which adapters it takes; those of no row have no hooks."""
        worn = tuple(sorted({each for row in rows for each in row}, key=lambda each: each.name))
        numbers = [row.get(each, 0.0) for row in rows for each in worn]
        weights = devices.placed(numbers, device, dtype).view(len(rows), len(worn))
        self._table = _Table(weights)
        if worn == self._worn:
            return
        self.drop()
        # Made ready once for adapters that come together, not for each pass.
        self._worn = worn
        for place in {place: None for each in worn for place in each.layers}:
            if place in self._layers:
                self._hook(place)

    def drop(self) -> None:
        """Takes all hooks off, and lets the adapters go."""
        while self._hooks:
            self._hooks.pop().remove()
        self._worn = ()

    def wears(self, adapter: Adapter) -> bool:
        return adapter in self._worn

    def _hook(self, place: Place) -> None:
        columns = tuple(number for number, each in enumerate(self._worn) if place in each.layers)
        lows = [self._worn[number].layers[place] for number in columns]
        ranks = tuple(len(low.down) for low in lows)
        joined = lows[0]
        if len(lows) > 1:
            joined = LowRank(
                torch.cat([low.down for low in lows]), torch.cat([low.up for low in lows], 1)
            )
        layer = self._layers[place]
        hook = partial(self._add, columns, ranks, joined)
        self._hooks.append(layer.register_forward_hook(hook))

    def _add(
        self,
        columns: tuple[int, ...],
        ranks: tuple[int, ...],
        low: LowRank,
        layer: nn.Module,
        inputs: tuple[torch.Tensor, ...],
        output: torch.Tensor,
    ) -> torch.Tensor:
        table = self._table.of(columns, ranks, output.ndim)
        return _add_to(output, layer, inputs[0], low, table)


class _Table:
    """How much of each rank each row takes, as layers of different shapes want it."""

    def __init__(self, weights: torch.Tensor) -> None:
        """`weights` are (rows, adapters)."""
        self._weights = weights
        self.of = cache(self._of)

    def _of(
        self, columns: tuple[int, ...], ranks: tuple[int, ...], ndim: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, ranks) with ones in between for outputs of so many dimensions, and where it is 0."""
        parts = [
            self._weights[:, column : column + 1].expand(-1, rank)
            for column, rank in zip(columns, ranks, strict=True)
        ]
        table = torch.cat(parts, 1)
        # Channels come second in what convolutions give, and last in all else.
        shape = (*table.shape, 1, 1) if ndim == 4 else (len(table), *(1,) * (ndim - 2), -1)
        table = table.view(shape)
        return table, table == 0


def _add_to(
    output: torch.Tensor,
    layer: Any,
    inputs: torch.Tensor,
    low: LowRank,
    table: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Adds to a layer's output what the ranks make of its inputs."""
    layer = layer.plain if isinstance(layer, PackedConv2d) else layer
    if low.down.ndim == 2:
        inner = F.linear(inputs, low.down)
    else:
        inner = F.conv2d(inputs, low.down, None, layer.stride, layer.padding, layer.dilation)
    weights, unused = table
    # Filled, since 0 times what has overflowed for another row would not be a number.
    inner = inner.mul_(weights).masked_fill_(unused, 0)
    places, whole = (
        (inner.movedim(1, -1), output.movedim(1, -1)) if output.ndim == 4 else (inner, output)
    )
    if not whole.is_contiguous():
        return output.add_(F.linear(places, low.up.flatten(1)).movedim(-1, 1))
    # One product and one sum in one go, in place: of a pass's time a twentieth.
    whole.view(-1, whole.shape[-1]).addmm_(
        places.reshape(-1, places.shape[-1]), low.up.flatten(1).t()
    )
    return output
