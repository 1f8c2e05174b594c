"""Texts of different lengths in one forward pass of a U-Net, without a mask.

A U-Net attends to a text alone, whose tokens do not attend to each other: a softmax over keys that are all repeated k
times is the same mean. So a shorter text is repeated up to the common multiple of all, which is exact up to rounding,
as if each were drawn alone with its own length. A1111 draws prompts of unequal lengths in passes of their own, which
is the same, unless it is set to fill them up with the encoding of nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")

# The common multiple may be so many times as long as the longest text; beyond, the batch is drawn in parts.
_MOST_REPEATED = 2


def joined(texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Texts (rows, tokens, width) of any lengths as one batch."""
    lengths = {text.shape[1] for text in texts}
    if len(lengths) > 1:
        common = math.lcm(*lengths)
        texts = [text.repeat(1, common // text.shape[1], 1) for text in texts]
    return torch.cat([*texts])


def grouped(samples: Sequence[T], length_of: Callable[[T], int]) -> list[list[T]]:
    """Samples whose texts can be joined without becoming much longer than the longest; nearly always they are one."""
    lengths = {length_of(sample) for sample in samples}
    if lengths and math.lcm(*lengths) <= _MOST_REPEATED * max(lengths):
        return [[*samples]]
    groups: list[list[T]] = []
    for sample in sorted(samples, key=length_of, reverse=True):
        for group in groups:
            together = math.lcm(*map(length_of, (*group, sample)))
            if together <= _MOST_REPEATED * length_of(group[0]):
                group.append(sample)
                break
        else:
            groups.append([sample])
    return groups
