"""Where the trainer keeps its state, and the process settings it runs under.

Nothing here is written into the checkout: checkpoints, artwork and logs live in one folder that can be
moved with ``T2I_TRAINING_DIR`` and deleted without harm to anything but the time spent.
"""

import os
import sys
from pathlib import Path

TRAINING = Path(__file__).resolve().parent

# One thread per operator, several replicas per process: two-thread operators wait for each other at every
# barrier, which is ruinous when anything else runs. glibc returns freed pages to the kernel by default and
# faults them in again a moment later; keeping them nearly doubles the speed of training.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}


def state_dir() -> Path:
    """The folder that holds everything training produces."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    default = Path(cache) / "text2image" / "training"
    path = Path(os.environ.get("T2I_TRAINING_DIR") or default)
    path.mkdir(parents=True, exist_ok=True)
    return path


def with_environment(module: str) -> None:
    """Start ``python -m module`` again under `ENVIRONMENT` unless it is already set.

    The allocator and OpenMP read these once, before Python code can run.
    """
    if all(os.environ.get(key) == value for key, value in ENVIRONMENT.items()):
        return
    os.environ.update(ENVIRONMENT)
    os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])
