"""What the machine offers, and where its runners are, found out without importing torch."""

from __future__ import annotations

import os

from text2image.core.addresses import parse_runners
from text2image.core.settings import Settings


def gpu_count() -> int:
    """NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")])
    import pynvml

    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except (pynvml.NVMLError, OSError):
        return 0


def runner_count(settings: Settings) -> int:
    """Runner processes to start: as many as are set, or one per GPU that `device` leaves the choice of."""
    if settings.runner_workers:
        return settings.runner_workers
    return max(1, gpu_count()) if settings.device in ("auto", "cuda") else 1


def runner_addresses(settings: Settings) -> tuple[str, ...]:
    """Where a gateway finds its runners: elsewhere, as the settings say, or on the private sockets of this machine."""
    if settings.runners:
        return parse_runners(settings.runners)
    return tuple(f"unix:{settings.socket_of(index)}" for index in range(runner_count(settings)))
