"""Weights that wait in the host's memory until they are needed, for models that are larger than their card.

As diffusers' `enable_model_cpu_offload` and `enable_sequential_cpu_offload` do, but for a loop that goes back and forth
between the parts of several models: of each device one part alone is there, and weights, which nobody changes, are not
copied back but dropped. All is done by the engine's one thread, in front of what it is about to compute.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)


class Part:
    """Modules whose weights come and go together."""

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """Takes the modules over, whose weights are in the host's memory."""
        self._device = device
        # Which module calls them what; the same tensor may have several names.
        self._places: list[tuple[dict[str, Any], str, torch.Tensor]] = [
            (own, name, tensor)
            for module in modules
            for own in (module._parameters, module._buffers)
            for name, tensor in own.items()
            if tensor is not None
        ]
        tensors = {id(tensor): tensor for _, _, tensor in self._places}
        self.bytes = sum(each.nbytes for each in tensors.values())
        self.is_there = False
        if device.type == "cuda":
            for each in tensors.values():
                # From other memory a copy would wait for all that the card was given before. What quantizers make of
                # tensors stays where it is.
                if type(each.data) is torch.Tensor:
                    each.data = each.data.pin_memory()

    def bring(self) -> None:
        """Has the weights on the device."""
        if self.is_there:
            return
        # Before the first copy, so that those that there was memory for are put back if one fails.
        self.is_there = True
        moved: dict[int, torch.Tensor] = {}
        for own, name, tensor in self._places:
            if id(tensor) not in moved:
                moved[id(tensor)] = _moved(tensor, self._device)
            own[name] = moved[id(tensor)]

    def put_back(self) -> None:
        """Drops what is on the device."""
        for own, name, tensor in self._places:
            own[name] = tensor
        self.is_there = False


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    moved = tensor.to(device, non_blocking=True)
    if isinstance(tensor, nn.Parameter) and not isinstance(moved, nn.Parameter):
        return nn.Parameter(moved, requires_grad=False)
    return moved


class Residence:
    """The one part that is on a device, of all models that are offloaded from it."""

    def __init__(self) -> None:
        # It goes with its model.
        self._part: weakref.ref[Part] | None = None

    @property
    def part(self) -> Part | None:
        """The part that is there, which leaves for any other one."""
        part = self._part() if self._part else None
        return part if part and part.is_there else None

    def bring(self, part: Part) -> None:
        """Has this part on the device, and no other one."""
        there = self.part
        if there and there is not part:
            there.put_back()
        self._part = weakref.ref(part)
        part.bring()


_residences: dict[torch.device, Residence] = {}


def is_used(device: torch.device) -> bool:
    """Whether a model was offloaded from this device."""
    return device in _residences


def resident(device: torch.device) -> int:
    """Bytes on this device of weights that leave when others are needed."""
    part = _residences[device].part if device in _residences else None
    return part.bytes if part else 0


def offload(pipeline: Any, device: torch.device, kind: str) -> None:
    """Has the networks of a pipeline, which are in the host's memory, come to the device when they are called.

    Args:
        kind: `model`, a network at a time, or `sequential`, a layer at a time.
    """
    residence = _residences.setdefault(device, Residence())
    for name, part in pipeline.components.items():
        if not isinstance(part, nn.Module):
            continue
        part.requires_grad_(False)
        if kind == "model":
            _bring_whole(part, Part(part.modules(), device), residence)
        else:
            for module in part.modules():
                if has_own(module):
                    _bring_for_a_call(module, Part([module], device))
        logger.debug("%s waits in the host's memory", name)
    # Pipelines make tensors where they say that they execute.
    own = type(pipeline)
    executed = {"_execution_device": property(lambda _: device)}
    pipeline.__class__ = type(own.__name__, (own,), executed)


def has_own(module: nn.Module) -> bool:
    """Whether a module has weights besides those of the modules within."""
    own = (*module._parameters.values(), *module._buffers.values())
    return any(each is not None for each in own)


def _bring_whole(network: nn.Module, part: Part, residence: Residence) -> None:
    """Brings a network in front of whatever is called of it; an autoencoder's decoder is called, it itself is not."""

    def bring(*_: Any) -> None:
        residence.bring(part)

    for child in network.children():
        child.register_forward_pre_hook(bring)
    forward = network.forward

    @wraps(forward)
    def brought(*args: Any, **kwargs: Any) -> Any:
        residence.bring(part)
        return forward(*args, **kwargs)

    _replace_forward(network, brought)


def _bring_for_a_call(module: nn.Module, part: Part) -> None:
    forward = module.forward

    @wraps(forward)
    def brought(*args: Any, **kwargs: Any) -> Any:
        try:
            part.bring()
            return forward(*args, **kwargs)
        finally:
            part.put_back()

    _replace_forward(module, brought)


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    # Not its class's: others of the same class are not offloaded.
    module.__dict__["forward"] = forward
