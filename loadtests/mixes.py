"""What load runs ask for: pictures of mixed step counts and sizes, by weight."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PROMPTS = (
    "a cat on a blue background",
    "a penguin in the snow",
    "a red apple",
    "a rocket in space",
    "a castle",
    "a sunflower on a pink background",
)
_SIZE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True, slots=True)
class Work:
    """One picture to ask for; None leaves a field to the server."""

    prompt: str
    seed: int
    steps: int | None = None
    size: tuple[int, int] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The fields that have the same names in all contracts."""
        fields: dict[str, Any] = {"seed": self.seed}
        if self.steps is not None:
            fields["steps"] = self.steps
        if self.size is not None:
            fields["width"], fields["height"] = self.size
        return fields

    def named(self, call: str) -> str:
        """The name that requests of this kind are counted under."""
        steps = [] if self.steps is None else [f"{self.steps} steps"]
        size = [] if self.size is None else ["{}x{}".format(*self.size)]
        return ", ".join([call, *steps, *size])


class Mix:
    """Draws work at random, each step count and each size as often as its weight says."""

    def __init__(self, steps: str = "", sizes: str = "") -> None:
        """Reads weights as in `10:1,20:2,40:1` and `128x128:3,64x64:1`; a weight that is left out is 1.

        Raises:
            ValueError: a text cannot be read so.
        """
        self._steps: list[tuple[int, float]] = [
            (_count(name), weight) for name, weight in _weighted(steps)
        ]
        self._sizes: list[tuple[tuple[int, int], float]] = [
            (_size(name), weight) for name, weight in _weighted(sizes)
        ]
        # A seed that was never used draws a picture that nobody can remember.
        self._seeds = random.SystemRandom()

    def work(self, generator: random.Random) -> Work:
        """The next picture; its seed is new whatever the generator's is."""
        return Work(
            generator.choice(PROMPTS),
            self._seeds.randrange(2**53),
            _chosen(self._steps, generator),
            _chosen(self._sizes, generator),
        )


def _weighted(text: str) -> list[tuple[str, float]]:
    parts = (part.strip().partition(":") for part in text.split(",") if part.strip())
    return [(name.strip(), _weight(weight)) for name, _, weight in parts]


def _weight(text: str) -> float:
    try:
        weight = float(text or 1)
    except ValueError:
        weight = 0.0
    if not weight > 0:
        raise ValueError(f"{text!r} is no weight: a number above 0 is needed, as in 20:2")
    return weight


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is no number of steps; write them as in 10:1,20:2")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no size; write it as in 128x128:3,64x64:1")
    return int(match[1]), int(match[2])


def _chosen(choices: Sequence[tuple[Any, float]], generator: random.Random) -> Any:
    if not choices:
        return None
    values, weights = zip(*choices, strict=True)
    return generator.choices(values, weights)[0]
