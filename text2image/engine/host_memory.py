"""The memory that a CPU's steps take: what is left of this process's container and of the machine.

The kernel's files about it are all that the engine's thread reads while it steps: no disk is behind them, once a second
they cost about a millisecond, and another thread's reading would not be of this step's time. psutil knows neither the
limit of a cgroup nor the most that was in use since a moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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

    def __init__(
        self,
        proc: Path = Path("/proc"),
        cgroups: Path = Path("/sys/fs/cgroup"),
        held: Callable[[], int] = lambda: 0,
    ) -> None:
        """`held` tells the bytes of this process that no step may have, and of which more come after the first
        `restart`."""
        self._proc = proc
        self._cgroups = cgroups
        self._taken = held
        self._taken_before = 0
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
        if self._held is None:
            return min(known)
        taken = self._taken() - self._taken_before
        kept = (self._status("VmRSS") or 0) - self._held - taken
        return min(known) + max(0, kept)

    def total(self) -> int | None:
        """Bytes that the container and the machine have at all; None if unknown."""
        limits = [_limit_of(*each) for each in _cgroups_around(self._proc, self._cgroups)]
        known = [each for each in (*limits, _kibibytes(self._proc / "meminfo", "MemTotal")) if each]
        return min(known, default=None)

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
            self._held, self._taken_before = used, self._taken()
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
    left = (_left_in(*each) for each in _cgroups_around(proc, cgroups))
    return min((each for each in left if each is not None), default=None)


def _cgroups_around(proc: Path, cgroups: Path) -> list[tuple[Path, _CgroupFiles]]:
    """The folders of this process's cgroup and of those around it."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    around = []
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
        around += [(folder, files) for folder in inside]
    return around


def _limit_of(folder: Path, files: _CgroupFiles) -> int | None:
    try:
        limit = (folder / files.limit).read_text().strip()
    except OSError:
        return None
    return int(limit) if limit.isdigit() else None


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
