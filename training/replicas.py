"""Data parallelism by threads in one process: replicas share the weights, gradients are summed. A card has one.

PyTorch releases the interpreter lock inside its operators, so one-thread operators in two threads keep two
cores busy without the barriers that two-thread operators have at every call.
"""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from training import machine


def _sharing(module: nn.Module) -> nn.Module:
    """A copy of a module that has its own gradients and the original's weights."""
    twin = copy.deepcopy(module)
    for mine, theirs in zip(twin.parameters(), module.parameters(), strict=True):
        mine.data = theirs.data
    return twin


class Replicas:
    """`module` and its twins, each driven by its own thread."""

    def __init__(self, module: nn.Module) -> None:
        count = machine.replicas()
        self.modules = [module] + [_sharing(module) for _ in range(count - 1)]
        self.pool = ThreadPoolExecutor(count)

    def backward(self, loss: Callable[[nn.Module, int], torch.Tensor]) -> list[torch.Tensor]:
        """Mean gradient of `loss(module, rank)` over the ranks, left in the first module's `.grad`.

        Returns each rank's loss.
        """

        def run(rank: int) -> torch.Tensor:
            value = loss(self.modules[rank], rank)
            torch.autograd.backward(value / len(self.modules))
            return value.detach()

        ranks = range(len(self.modules))
        values = list(self.pool.map(run, ranks)) if len(ranks) > 1 else [run(0)]
        for twin in self.modules[1:]:
            pairs = zip(self.modules[0].parameters(), twin.parameters(), strict=True)
            for mine, theirs in pairs:
                if mine.grad is not None and theirs.grad is not None:
                    mine.grad.add_(theirs.grad)
            twin.zero_grad(set_to_none=True)
        return values
