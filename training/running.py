"""Running for hours on a machine that has other things to do: checkpoints, the log, and stopping."""

import json
import math
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from training.paths import state_dir


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old one or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint written by `save`."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def decayed(peak: float, step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """The rate at a step: a linear warm-up to the peak, then half a cosine to `floor` of it at the last step."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1, (step + 1) / warmup) * (floor + (1 - floor) * cosine)


class Log:
    """Appends one JSON object a line to log.jsonl; `plot.py` draws it."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.path = state_dir() / "log.jsonl"

    def write(self, **values: float) -> None:
        """Append a record and print it."""
        record = {"stage": self.stage, "time": round(time.time(), 1)}
        record |= {k: float(f"{v:.6g}") for k, v in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(" ".join(f"{k}={v}" for k, v in record.items() if k != "time"), flush=True)


class Stop:
    """Turns SIGTERM and SIGINT into a question that the loop asks between steps."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


class Stopped(Exception):
    """Raised by a stage after it has saved its checkpoint and been asked to stop."""
