"""What a check found, and how it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# In one line of a server's log; `check` tells them all.
_MOST_TOLD = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a model that its owner should know.

    Attributes:
        where: the file, within the model's folder, or the setting that it is about.
        what: what is wrong, and what to do.
        fatal: whether the model cannot be served like this.
    """

    where: str
    what: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def summary(model: str, findings: Sequence[Finding]) -> str:
    """Fatal findings in one line."""
    told = [str(each) for each in findings if each.fatal]
    more = len(told) - _MOST_TOLD
    rest = f"; and {more} more, which `python -m text2image check` tells" if more > 0 else ""
    return f"T2I_MODEL={model} cannot be served: {'; '.join(told[:_MOST_TOLD])}{rest}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
