"""The network of a model as torch has it, layer by layer, beside what executes it as one graph.

What reaches into a pass, as adapters and ControlNets do, cannot reach into a graph that is frozen or compiled. Such
batches run here. Where torch executes the network anyway this one shares its weights; beside OpenVINO's it has its own,
and takes that much memory, from the first batch on that needs it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import torch
from torch import nn

from text2image.engine import devices
from text2image.engine.runtimes.forward import call_of, taken


class OpenNetwork:
    """A U-Net or transformer whose layers can be reached, for instance by hooks."""

    def __init__(self, network: Any, device: torch.device) -> None:
        """Takes a network of diffusers that nobody else executes."""
        self.network: nn.Module = network
        self.dtype: torch.dtype = network.dtype
        self._device = device
        self._taken = taken(network.config)
        self._call = call_of(network)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None = None,
        *,
        pooled: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        residuals: Sequence[torch.Tensor] = (),
    ) -> torch.Tensor:
        """As `Networks.predict`; `residuals` are added to what a U-Net's down blocks and its middle give."""
        given = {"guidance": guidance, "pooled": pooled, "time_ids": time_ids}
        more: dict[str, Any] = {name: self._cast(given[name]) for name in self._taken}
        if residuals:
            more["residuals"] = residuals
        return self._call(
            self.network,
            latents.to(self.dtype, memory_format=torch.channels_last),
            devices.moved(timesteps, self._device),
            self._cast(embeddings),
            **more,
        )

    def _cast(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(self.dtype)


class Opening:
    """An open network that is made when it is first asked for. Safe to use from several threads."""

    def __init__(self, make: Callable[[], OpenNetwork], nbytes: int) -> None:
        """`make` may take seconds; `nbytes` is what its weights take besides those that are there."""
        self._make = make
        self._lock = Lock()
        self._made: OpenNetwork | None = None
        self._nbytes = nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of weights that it has taken so far."""
        return self._nbytes if self._made else 0

    @property
    def missing(self) -> int:
        """Bytes of weights that it has yet to take."""
        return 0 if self._made else self._nbytes

    def __call__(self) -> OpenNetwork:
        """
        Raises:
            OSError, ValueError: the weights cannot be read any more.
        """
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def twin_of(network: nn.Module) -> Any:
    """A network of the same weights, in the same memory, whose hooks are its own."""
    twins: dict[int, nn.Module] = {}

    def twin(module: nn.Module) -> nn.Module:
        if id(module) not in twins:
            twins[id(module)] = new = copy.copy(module)
            # Of the module itself all is shared but these.
            new._modules = {
                name: child if child is None else twin(child)
                for name, child in module._modules.items()
            }
            new._forward_hooks = OrderedDict()
            new._forward_pre_hooks = OrderedDict()
        return twins[id(module)]

    return twin(network)
