"""How much a caller may: the words for it, and what a request costs.

Work is counted in pixel-steps, exactly; people read and write it in millions, megapixel-steps. A picture of 512 x 512
pixels and 20 steps costs 5.2 of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from text2image.core.controls import CONTROL_LOAD
from text2image.core.hires import passes
from text2image.core.messages import Request
from text2image.core.samplers import network_calls

MEGA = 1_000_000
PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_BYTES = re.compile(r"\s*(\d{1,6}(?:\.\d{1,3})?)\s*([KMGT]?i?B)\s*|\s*(\d{1,18})\s*", re.IGNORECASE)
_LIMIT = re.compile(r"\s*(\d{1,9})\s*/\s*([a-z]+)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most so many megapixel-steps in any window as long as `period`, one of `PERIODS`."""

    megapixel_steps: int
    period: str

    @property
    def quota(self) -> int:
        """Pixel-steps."""
        return self.megapixel_steps * MEGA

    @property
    def seconds(self) -> int:
        return PERIODS[self.period]

    def __str__(self) -> str:
        return f"{self.megapixel_steps}/{self.period}"


@dataclass(frozen=True, slots=True)
class Allowance:
    """All limits of a caller; None is no cap on the requests that are drawn at once."""

    limits: tuple[RateLimit, ...] = ()
    max_concurrent: int | None = None


def parse_bytes(text: str) -> int:
    """A number of bytes as people write it: `6GiB`, `500MB`, or the number alone.

    Raises:
        ValueError: the text is none.
    """
    match = _BYTES.fullmatch(text)
    if not match:
        raise ValueError(f"{text.strip()[:40]!r} is no number of bytes; write it as in 6GiB")
    if match[3]:
        return int(match[3])
    unit = match[2].upper()
    base = 1024 if "I" in unit else 1000
    return int(float(match[1]) * base ** ("BKMGT".index(unit[0])))


@lru_cache(maxsize=1024)
def parse_limits(text: str) -> tuple[RateLimit, ...]:
    """Limits as people write them: `600/minute`, several as `600/minute;5000/day`, and none as nothing.

    Raises:
        ValueError: the text is none; the message says what it may be.
    """
    limits = tuple(_parsed(part) for part in text.split(";") if text)
    if len({limit.period for limit in limits}) < len(limits):
        raise ValueError(f"{text!r} limits the same period twice")
    return limits


def _parsed(text: str) -> RateLimit:
    match = _LIMIT.fullmatch(text)
    if not match or not int(match[1]) or match[2].lower() not in PERIODS:
        raise ValueError(
            f"{text.strip()!r} is no limit; write megapixel-steps per {', '.join(PERIODS)} "
            "as in 600/minute, several with a semicolon between them"
        )
    return RateLimit(int(match[1]), match[2].lower())


def work_of(request: Request) -> int:
    """What a request costs, in pixel-steps; a step in which the network is asked twice counts as two.

    Of a picture that begins from another, the steps that are drawn count, and to encode that one counts as one more.
    One that is enlarged costs what both passes do, and where a network enlarges it a step of its new size more. Each
    ControlNet costs as much more as it computes in a row.
    """
    first, second = passes(request)
    calls = network_calls(first.sampler, first.steps_drawn) * first.n
    encodings = 0 if first.image is None else 1
    more = 0 if second is None else work_of(replace(second, n=1)) * second.n
    if second is not None and request.hires_upscaler:
        more += second.width * second.height * second.n
    steered = calls * round(100 * CONTROL_LOAD) * len(first.controls) // 100
    return first.width * first.height * (calls + encodings + steered) + more
