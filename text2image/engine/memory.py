"""How large a batch the free memory allows, read from the device now and then, so that no failure has to tell it.

What a step takes is learned while the engine warms up, and taken to grow with rows and with latent pixels. Running out
of memory all the same is dealt with where it happens (see the step loop); this is what makes it rare, and on a CPU,
where nobody raises an error before the kernel ends the process, it is the only guard there is.

The kernel's files about a host's memory are all that the engine's thread reads while it steps: no disk is behind
them, once a second they cost about a millisecond, and another thread's reading would not be of this step's time.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from text2image.core.errors import FieldViolation, InvalidRequest, Text2ImageError, Unavailable
from text2image.engine.sample import Generation, Group

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


class MemoryGuard:
    """The rows that fit. `refresh` and `learn` are the engine thread's; all else may be called from others too."""

    def __init__(self, memory: DeviceMemory | None = None, *, reserve: float = 0.0) -> None:
        """Bounds nothing without a `memory`; `reserve` is the share of what is free that batches leave alone."""
        self._memory = memory
        self._reserve = reserve
        # Bytes of a step at one latent size, by rows; those that were kept before the last `restart`; those that
        # decoding one picture adds to them.
        self._steps: dict[int, int] = {}
        self._kept = 0
        self._decode = 0
        self._area = 1
        self._free: int | None = None
        self._used: int | None = None
        self._most_free = 0
        self._read_at = float("-inf")

    def restart(self) -> None:
        """Begins to watch what steps, or a decoding, take."""
        if self._memory is not None:
            self._kept = max(0, self._memory.restart() or 0)

    def learn_step(self, group: Group, rows: int) -> None:
        """Learns from a step that was larger than all before."""
        self._area = group.area
        if peak := self._peak():
            self._steps[rows] = peak

    def learn_decode(self) -> None:
        """Learns from the decoding of one picture of the size that steps were learned from."""
        # What the steps before have kept does not grow with the picture.
        self._decode = max(0, self._peak() - self._kept)

    def refresh(self, now: float) -> None:
        """Reads the free memory, if the last reading has grown old."""
        if self._memory is None or now < self._read_at + READING_PAUSE:
            return
        self._read_at = now
        self._free, self._used = self._memory.free(), self._memory.used()
        self._most_free = max(self._most_free, self._free or 0)

    @property
    def reading(self) -> MemoryReading | None:
        """What was read last; None where the device does not tell, or was not asked."""
        free, used = self._free, self._used
        return None if free is None or used is None else MemoryReading(free, used)

    def rows(self, group: Group) -> int:
        """Rows of the largest step that fits; 0 if none does."""
        if self._free is None or not self._steps:
            return UNBOUNDED
        fixed, per_row = self._line()
        per_row *= group.area / self._area
        return max(0, int((self._usable(self._free) - fixed) / per_row)) if per_row else UNBOUNDED

    def pictures(self, group: Group) -> int:
        """Pictures that may be decoded at once; at least one."""
        if self._free is None or not self._decode:
            return UNBOUNDED
        each = self._decode * group.area / self._area
        return max(1, int((self._usable(self._free) - self._kept) / each))

    def refusal(self, generation: Generation) -> Text2ImageError | None:
        """Why a picture does not fit, alone as it may be, or None."""
        sample, request = generation.samples[0], generation.request
        if self._free is None:
            return None
        need = self.need(sample.group, sample.rows)
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

    def need(self, group: Group, rows: int) -> int:
        """Bytes for a step of so many rows and for decoding a picture, whichever is more."""
        fixed, per_row = self._line()
        scale = group.area / self._area
        return int(max(fixed + rows * per_row * scale, self._kept + self._decode * scale))

    def _line(self) -> tuple[float, float]:
        """Bytes of any step, and those of each row on top, at the size that steps were learned from."""
        if not self._steps:
            return 0.0, 0.0
        least, most = min(self._steps), max(self._steps)
        if least == most:
            return 0.0, self._steps[most] / most
        per_row = (self._steps[most] - self._steps[least]) / (most - least)
        return max(0.0, self._steps[most] - per_row * most), per_row

    def _usable(self, free: int) -> float:
        return free * (1 - self._reserve)

    def _peak(self) -> int:
        peak = self._memory.peak() if self._memory is not None else None
        return max(0, peak or 0)


@dataclass(frozen=True, slots=True)
class _CgroupFiles:
    """A cgroup's files, and the values in its memory.stat that count the pages of files and the kernel's caches."""

    limit: str
    used: str
    inactive: str
    active: str
    mapped: str
    slab: str


_V2 = _CgroupFiles(
    "memory.max",
    "memory.current",
    "inactive_file",
    "active_file",
    "file_mapped",
    "slab_reclaimable",
)
# Version 1 does not tell of the kernel's caches.
_V1 = _CgroupFiles(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
    "total_active_file",
    "total_mapped_file",
    "",
)


class HostMemory:
    """The memory of this process on a CPU: what its container and the machine have left."""

    def __init__(self, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> None:
        self._proc = proc
        self._cgroups = cgroups
        self._held: int | None = None
        self._marked = False

    def free(self) -> int | None:
        known = [
            free
            for free in (_free_in_cgroup(self._proc, self._cgroups), self._available())
            if free is not None
        ]
        if not known:
            return None
        # The allocator keeps what earlier steps gave back, and gives it to later ones.
        kept = max(0, (self._status("VmRSS") or 0) - self._held) if self._held is not None else 0
        return min(known) + kept

    def used(self) -> int | None:
        return self._status("VmRSS")

    def restart(self) -> int | None:
        self._marked = False
        with contextlib.suppress(OSError):
            # Resets the high-water mark (proc(5)); a sandbox may not allow it.
            (self._proc / "self/clear_refs").write_text("5")
            self._marked = True
        used = self._status("VmRSS")
        if self._held is None:
            self._held = used
        return None if used is None or self._held is None else used - self._held

    def peak(self) -> int | None:
        used = self._status("VmHWM" if self._marked else "VmRSS")
        return None if used is None or self._held is None else used - self._held

    def _available(self) -> int | None:
        return _kibibytes(self._proc / "meminfo", "MemAvailable")

    def _status(self, name: str) -> int | None:
        return _kibibytes(self._proc / "self/status", name)


def _free_in_cgroup(proc: Path, cgroups: Path) -> int | None:
    """Bytes left in this process's cgroup (v2 or v1) or the tightest of those around it; None where none tells."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    left = []
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        # In v1 each controller has a tree of its own.
        root, files = (cgroups / "memory", _V1) if controllers else (cgroups, _V2)
        lowest = root / own.lstrip("/")
        inside = [
            each for each in (lowest, *lowest.parents) if each == root or root in each.parents
        ]
        left += [free for folder in inside if (free := _left_in(folder, files)) is not None]
    return min(left, default=None)


def _left_in(folder: Path, files: _CgroupFiles) -> int | None:
    try:
        limit = (folder / files.limit).read_text().strip()
        if limit == "max":
            return None
        used = int((folder / files.used).read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
        stat = {name: int(value) for name, value in map(str.split, lines)}
        left = int(limit) - used
    except (OSError, ValueError):
        return None
    # The kernel takes back the pages of files that were read, and what it keeps for itself, before it calls memory
    # full; those that are mapped, as the code that runs is, it would only have to read again.
    idle_files = max(0, stat.get(files.active, 0) - stat.get(files.mapped, 0))
    return max(0, left + stat.get(files.inactive, 0) + idle_files + stat.get(files.slab, 0))


def _kibibytes(file: Path, name: str) -> int | None:
    """A value of a file in the form of /proc/meminfo, in bytes."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    values = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    value = next(values, None)
    return None if value is None else int(value) * 1024
