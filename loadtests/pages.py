"""What all measurements tell in the same way: lines while they run, the machine, and tables in Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path


def progress(line: str) -> None:
    """A line that is seen at once, through a pipe too."""
    print(line, flush=True)


def machine() -> str:
    """The machine in a few words."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        if cpuinfo.is_file()
        else []
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{cores} cores of {names[0] if names else platform.processor()}, torch {version('torch')}"
    )


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median; in brackets the lowest and the highest, if there is more than one value."""
    return ranged(statistics.median(values), values, digits)


def ranged(value: float, values: Sequence[float], digits: int = 2) -> str:
    """A value; in brackets the lowest and the highest of those that it stands for, if they are several."""
    told = f"{value:.{digits}f}"
    if len(values) == 1:
        return told
    return f"{told} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
