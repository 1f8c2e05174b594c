"""How large a batch the free memory allows, read from the device now and then, so that no failure has to tell it.

What a step takes is learned while the engine warms up, and taken to grow with rows and with the size of their key.
Running out of memory all the same is dealt with where it happens (see the step loop); this is what makes it rare, and
on a CPU, where nobody raises an error before the kernel ends the process, it is the only guard there is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from text2image.core.errors import FieldViolation, InvalidRequest, Text2ImageError, Unavailable
from text2image.engine.sample import BatchKey, Generation

# Rows where nothing is known that would bound them.
UNBOUNDED = 1 << 30
# Seconds from one reading of the free memory to the next.
READING_PAUSE = 1.0
MEMORY_RETRY_SECONDS = 5.0
_MIB = 1 << 20


class DeviceMemory(Protocol):
    """A device's memory, as far as it tells. Read in the engine's thread alone."""

    def free(self) -> int | None:
        """Bytes that a step may take, those included that this process keeps for the next one; None if unknown."""
        ...

    def used(self) -> int | None:
        """Bytes that this process holds, kept ones included; None if unknown."""
        ...

    def restart(self) -> int | None:
        """Begins to watch for the peak, and returns the bytes in use now, counted as `peak` counts them."""
        ...

    def peak(self) -> int | None:
        """Most bytes in use since `restart`, less those in use when it was first called; None if unknown."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Bytes of a device, or of the host or container of a CPU.

    `free` are those that steps may take, `used` those that this process holds, the ones it keeps for later included.
    """

    free: int
    used: int


@dataclass(slots=True)
class _Use:
    """What one model's steps and pictures were seen to take, in bytes.

    Attributes:
        size: of the key that this was learned from.
        steps: of a step, by rows.
        kept, decode: of what steps keep for the next one, and what decoding one picture adds to that.
        tiled_above: size of the largest picture that is decoded whole; no larger one takes more for its decoding.
    """

    size: float = 1.0
    steps: dict[int, int] = field(default_factory=dict)
    kept: int = 0
    decode: int = 0
    tiled_above: float = math.inf

    def decoding(self, size: float) -> float:
        """What decoding one picture of this size adds to what is kept."""
        return self.decode * min(size, max(self.tiled_above, self.size)) / self.size

    def line(self) -> tuple[float, float]:
        """Bytes of any step, and those of each row on top."""
        if not self.steps:
            return 0.0, 0.0
        least, most = min(self.steps), max(self.steps)
        if least == most:
            return 0.0, self.steps[most] / most
        per_row = (self.steps[most] - self.steps[least]) / (most - least)
        return max(0.0, self.steps[most] - per_row * most), per_row


_NOTHING = _Use()


class MemoryGuard:
    """The rows that fit. `refresh` and `learn` are the engine thread's; all else may be called from others too."""

    def __init__(self, memory: DeviceMemory | None = None, *, reserve: float = 0.0) -> None:
        """Bounds nothing without a `memory`; `reserve` is the share of what is free that batches leave alone."""
        self._memory = memory
        self._reserve = reserve
        self._uses: dict[str, _Use] = {}
        # What is learned about now, and the bytes that were kept before the last `restart`.
        self._learning = _Use()
        self._kept = 0
        self._free: int | None = None
        self._used: int | None = None
        self._most_free = 0
        self._read_at = float("-inf")

    def restart(self) -> None:
        """Begins to watch what steps, or a decoding, take."""
        if self._memory is not None:
            self._kept = max(0, self._memory.restart() or 0)

    def learn_step(self, key: BatchKey, rows: int) -> None:
        """Learns from a step that was larger than all before of its model."""
        self._learning = self._uses.setdefault(key.model, _Use())
        self._learning.size = key.size
        if peak := self._peak():
            self._learning.steps[rows] = peak

    def learn_decode(self, tiled_above: float = math.inf) -> None:
        """Learns from the decoding of one picture of the model and size that steps were learned from.

        Args:
            tiled_above: size of the largest one that is decoded whole, as keys have it.
        """
        self._learning.tiled_above = tiled_above
        # What the steps before have kept does not grow with the picture.
        self._learning.kept = self._kept
        self._learning.decode = max(0, self._peak() - self._kept)

    def adopt(self, other: MemoryGuard) -> None:
        """Takes in what was learned of other models, and reads the memory as `other` does, with their weights held."""
        self._uses |= other._uses
        self._memory = other._memory

    def read_as(self, memory: DeviceMemory | None) -> None:
        """Reads the memory through that of a model which was loaded just now, so that its weights count as held."""
        self._memory = memory
        self.restart()

    def refresh(self, now: float, *, anew: bool = False) -> None:
        """Reads the free memory, if the last reading has grown old, or in any case `anew`."""
        if self._memory is None or (now < self._read_at + READING_PAUSE and not anew):
            return
        self._read_at = now
        self._free, self._used = self._memory.free(), self._memory.used()
        self._most_free = max(self._most_free, self._free or 0)

    @property
    def reading(self) -> MemoryReading | None:
        """What was read last; None where the device does not tell, or was not asked."""
        free, used = self._free, self._used
        return None if free is None or used is None else MemoryReading(free, used)

    def rows(self, key: BatchKey) -> int:
        """Rows of the largest step that fits; 0 if none does."""
        use = self._use(key)
        if self._free is None or not use.steps:
            return UNBOUNDED
        fixed, per_row = use.line()
        per_row *= key.size / use.size
        return max(0, int((self._usable(self._free) - fixed) / per_row)) if per_row else UNBOUNDED

    def pictures(self, key: BatchKey, beside: tuple[BatchKey, int] | None = None) -> int:
        """Pictures that may be decoded at once: at least one, or beside a step of such a key and rows perhaps none."""
        use = self._use(key)
        if self._free is None or not use.decode:
            return UNBOUNDED
        each = use.decoding(key.size)
        if beside is None:
            return max(1, int((self._usable(self._free) - use.kept) / each))
        return max(0, int((self._usable(self._free) - self._step(*beside)) / each))

    def refusal(self, generation: Generation) -> Text2ImageError | None:
        """Why a picture does not fit, alone as it may be, or None."""
        sample, request = generation.samples[0], generation.request
        if self._free is None:
            return None
        need = self.need(sample.key, sample.rows)
        if need <= self._usable(self._free):
            return None
        size = f"{request.width}x{request.height}"
        takes = f"takes about {need / _MIB:.0f} MiB of the device's memory"
        if need > self._usable(self._most_free):
            most = self._usable(self._most_free) / _MIB
            reason = f"a picture of {size} {takes}, of which it has {most:.0f}; ask for less"
            return InvalidRequest(FieldViolation("width", reason), FieldViolation("height", reason))
        return Unavailable(
            f"a picture of {size} {takes} and {self._usable(self._free) / _MIB:.0f} are free; "
            "ask for a smaller one, or later",
            reason=Unavailable.FULL,
            retry_after=MEMORY_RETRY_SECONDS,
        )

    def need(self, key: BatchKey, rows: int) -> int:
        """Bytes for a step of so many rows and for decoding a picture, whichever is more."""
        use = self._use(key)
        return int(max(self._step(key, rows), use.kept + use.decoding(key.size)))

    def _step(self, key: BatchKey, rows: int) -> float:
        """Bytes of a step of so many rows."""
        use = self._use(key)
        fixed, per_row = use.line()
        return fixed + rows * per_row * key.size / use.size

    def _use(self, key: BatchKey) -> _Use:
        return self._uses.get(key.model, _NOTHING)

    def _usable(self, free: int) -> float:
        return free * (1 - self._reserve)

    def _peak(self) -> int:
        peak = self._memory.peak() if self._memory is not None else None
        return max(0, peak or 0)
