"""Weights of a model that leaves a GPU: kept in the host's memory, and brought back from there without the disk.

A model stays as it is but for where its weights lie: each tensor's data is exchanged, so that whatever holds the tensor
finds it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from text2image.core.settings import Settings
from text2image.engine import devices
from text2image.engine.host_memory import HostMemory
from text2image.engine.models.contract import Model
from text2image.engine.models.prompts import Cache
from text2image.engine.runtimes.buckets import Buckets

# Of the host's free memory, what models may take where no setting says it.
SHARE = 0.5
# How deep a model holds its networks: in its encoders, in a refiner's, in a pipeline; all of it where it is checked.
_DEPTH = 6
# What is looked into for networks.
_OURS = ("text2image.", "diffusers.pipelines.")

Move = Callable[[torch.Tensor], torch.Tensor]


class HostParking:
    """Keeps models of one device in the host's memory. Called in threads beside the engine's."""

    def __init__(self, settings: Settings, index: int) -> None:
        self._settings = settings
        self._index = index

    def room(self, held: int) -> int:
        """Bytes that models may take in all; 0 where the device computes in the host's memory anyway.

        Args:
            held: those that they take now.
        """
        if self._device().type != "cuda":
            return 0
        if self._settings.model_host_memory is not None:
            return self._settings.model_host_memory
        free = HostMemory().free()
        return 0 if free is None else int(SHARE * (free + held))

    def park(self, model: Model) -> bool:
        """Moves a model's weights off the device; False if they must stay where they are, or there is no memory."""
        try:
            return exchange(model, devices.to_host)
        except (RuntimeError, MemoryError, TypeError):
            # As of weights that are more than their numbers. A part may have moved: the model is not kept.
            return False

    def restore(self, model: Model) -> Model:
        """Brings its weights back.

        Raises:
            OutOfMemory: the device has no room for them.
        """
        device = self._device()
        devices.prepare_thread(device, 1)
        with devices.device_errors(), devices.beside(device):
            exchange(model, lambda tensor: tensor.to(device))
        # It counts what the model holds from when it is read first.
        model.memory = devices.memory_of(device)
        return model

    def _device(self) -> torch.device:
        return devices.pick_device(self._settings.device, self._index)


def exchange(model: Model, move: Move) -> bool:
    """Puts what `move` makes of them in place of the data of all weights; False if something holds their addresses."""
    found = list(_held(model))
    if any(isinstance(each, Buckets) for each in found):
        # Graphs of the card's kernels read weights where they lay when these were recorded.
        return False
    for each in found:
        if isinstance(each, Cache):
            # Encoded prompts lie on the device too, and are soon made again.
            each.clear()
    networks = [each for each in found if isinstance(each, nn.Module)]
    tensors = {
        id(tensor): tensor
        for network in networks
        for tensor in (*network.parameters(), *network.buffers())
    }
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.data = move(tensor.data)
    return True


def _held(holder: Any, depth: int = _DEPTH) -> Iterator[Any]:
    """Networks, caches of prompts and compiled networks that something of this package holds."""
    if isinstance(holder, nn.Module | Cache | Buckets):
        yield holder
    elif depth:
        if isinstance(holder, list | tuple):
            parts = list(holder)
        elif isinstance(holder, dict):
            parts = list(holder.values())
        elif type(holder).__module__.startswith(_OURS):
            parts = list(getattr(holder, "__dict__", {}).values())
        else:
            return
        for part in parts:
            yield from _held(part, depth - 1)
