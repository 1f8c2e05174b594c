"""What the training runs on: a CUDA card if torch sees one, else two threads of a CPU."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


@cache
def device() -> torch.device:
    """The device of all stages."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda")


def sized(sizes: dict[str, T]) -> T:
    """The one for this machine's kind of device: a card pays off with steps of hundreds of pictures only."""
    return sizes[device().type]


def replicas() -> int:
    """Copies that share a step's batch, each driven by a thread of its own."""
    return sized({"cpu": 2, "cuda": 1})


def half_precision() -> AbstractContextManager[object]:
    """bfloat16 where there are instructions for it, else nothing."""
    if device().type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def generator(seed: int) -> torch.Generator:
    """Random numbers on the device."""
    return torch.Generator(device()).manual_seed(seed)


def generators(step: int) -> list[torch.Generator]:
    """One for each replica of a training that begins, or is taken up again, at this step."""
    count = replicas()
    return [generator(step * count + rank) for rank in range(count)]
