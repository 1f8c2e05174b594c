"""The part of a picture's way in which it is guided.

Guidance takes a second, unconditional row of the network. At some noise levels it does next to nothing, at others even
harm (Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
Diffusion Models"), so a picture that leaves it out there takes less work. Here the interval is counted in the picture's
own passes and not in noise levels: it means as much work with every sampler.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_INTERVAL = re.compile(r"\s*(\d*\.?\d+)\s*-\s*(\d*\.?\d+)\s*")


@dataclass(frozen=True, slots=True)
class Interval:
    """Where guidance begins and ends, as shares of the passes: 0 is before the first, 1 after the last."""

    start: float = 0.0
    end: float = 1.0

    def passes(self, total: int) -> range:
        """The guided ones of so many passes, counted from 0: those whose middle lies inside, and always one."""
        first = min(round(self.start * total), total - 1)
        return range(first, max(first + 1, round(self.end * total)))

    def __str__(self) -> str:
        return f"{self.start:g}-{self.end:g}"


EVERYWHERE = Interval()


def parse_interval(text: str) -> Interval:
    """An interval as people write it: `0.1-0.6`.

    Raises:
        ValueError: the text is none; the message says what it may be.
    """
    match = _INTERVAL.fullmatch(text)
    interval = Interval(float(match[1]), float(match[2])) if match else None
    if interval is None or not 0 <= interval.start < interval.end <= 1:
        raise ValueError(
            f"{text.strip()!r} is no interval; write two shares of the passes between 0 and 1, the smaller one first, "
            "as in 0.1-0.6"
        )
    return interval
