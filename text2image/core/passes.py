"""What each pass of a picture through the network computes: with guidance or without, all of it or the outer part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Pass(NamedTuple):
    """One pass: 2 rows with guidance and 1 without; whole, or with the deep features of the last whole one."""

    rows: int
    whole: bool = True


def schedule(total: int, guided: range, every: int = 1) -> tuple[Pass, ...]:
    """The passes of a picture, of which the first of each `every` is whole, and each that has more rows than the one.

    Args:
        guided: those that are guided, counted from 0.
    """
    passes: list[Pass] = []
    known = 0
    for number in range(total):
        rows = 2 if number in guided else 1
        whole = number % every == 0 or rows > known
        known = rows if whole else known
        passes.append(Pass(rows, whole))
    return tuple(passes)


def work(passes: Sequence[Pass], outer: float) -> float:
    """What they take in plain rows, of which an outer pass's is the share `outer`."""
    return sum(each.rows * (1.0 if each.whole else outer) for each in passes)
