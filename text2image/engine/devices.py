"""All that depends on the kind of device: choosing it, its precision, its threads, its memory, its errors.

Torch is used from the engine's thread alone, and by the one that compiles (`runtimes/buckets.py`). On a CPU this
matters twice: GNU OpenMP keeps a team of workers for each thread that runs torch, and two teams on the same cores let
each other's workers sleep between the thousands of short parallel regions of a step, which doubles its wall time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from text2image.core.settings import Settings
from text2image.engine.host_memory import HostMemory
from text2image.engine.memory import DeviceMemory
from text2image.engine.models.contract import DeviceLost, OutOfMemory
from text2image.engine.runtimes import graphs, offload

logger = logging.getLogger(__name__)

# Rows up to which a growing batch can pay off: on a CPU the cores are full soon.
_MAX_ROWS = {"cpu": 32, "mps": 32, "cuda": 128}
_MEMORY_MESSAGES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    # oneDNN's, which has no memory for the code that it generates.
    "could not create a primitive",
)


def pick_device(name: str, index: int = 0) -> torch.device:
    """The device that a setting names; `auto` takes the best there is, `index` tells GPUs apart.

    Raises:
        ValueError: the device is not available here.
    """
    device = torch.device(_best_kind() if name == "auto" else name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"T2I_DEVICE={name}, but this torch sees no CUDA device; use auto or cpu")
    if device.type == "cuda" and ":" not in name:
        return torch.device("cuda", index % torch.cuda.device_count())
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"T2I_DEVICE={name}, but this torch has no MPS; use auto or cpu")
    return device


def _best_kind() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_dtype(device: torch.device, name: str) -> torch.dtype:
    """The precision that a setting names; `auto` is fp32 on a CPU, else the half precision that the card supports."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a device does not compute in a precision; None if it does."""
    try:
        picture = torch.zeros(1, 1, 3, 3, dtype=dtype, device=device)
        torch.nn.functional.linear(torch.conv2d(picture, picture).flatten(1), picture[0, 0, :1, :1])
    except (RuntimeError, TypeError) as error:
        return str(error).partition("\n")[0]
    return None


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: its affinity, and the CPU quota of its container (cgroup v2)."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text().split()
        return max(1, min(cores, int(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def computing_threads(settings: Settings) -> int:
    """Threads that compute on a CPU: those that are set, or this process's share of the usable cores."""
    return settings.threads or max(1, usable_cores() // max(1, settings.runner_workers))


def prepare_thread(device: torch.device, threads: int) -> None:
    """Sets up the calling thread, from which torch on a CPU computes with so many threads."""
    if device.type == "cpu":
        torch.set_num_threads(threads)
    elif device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.matmul.allow_tf32 = True


def max_rows(device: torch.device) -> int:
    """Rows of the largest batch worth measuring."""
    return _MAX_ROWS.get(device.type, 32)


def wait(device: torch.device) -> None:
    """Returns when the work is done that this thread has given to the device; on CUDA to its current stream.

    Not for the whole card: what lies on other streams may go on, and to wait for all spoils a graph that another thread
    is recording.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def placed(numbers: Sequence[Any], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Numbers as a tensor on the device, (N, ...); nobody waits for them to arrive."""
    return moved(torch.tensor(numbers, dtype=dtype), device)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on the device; nobody waits for it to arrive."""
    if device.type == "cuda":
        # From other memory a copy waits for all that the device was given before.
        tensor = tensor.pin_memory()
    # Metal would read the memory after it was given to others.
    return tensor.to(device, non_blocking=device.type != "mps")


class SideStream:
    """Where a device works beside its steps: on CUDA a second stream; elsewhere nowhere, and all comes in turn.

    So it does where weights are offloaded: the steps' and the decoder's are not there at once.
    """

    def __init__(self, device: torch.device) -> None:
        is_apart = device.type == "cuda" and not offload.is_used(device)
        self._stream = torch.cuda.Stream(device) if is_apart else None  # type: ignore[no-untyped-call]

    @property
    def is_apart(self) -> bool:
        """Whether steps go on meanwhile."""
        return self._stream is not None

    @contextmanager
    def work(self, *inputs: torch.Tensor) -> Iterator[None]:
        """What is done within reads these tensors of the steps' stream, after all that was given to that before."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        for each in inputs:
            # Their memory is not given to the steps again before it is read here.
            each.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield


class Fetched:
    """Tensors on their way from the device to the CPU."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        """Called in the stream that they are made in."""
        self._event: torch.cuda.Event | None = None
        if tensors[0].device.type != "cuda":
            self._tensors = [each.cpu() for each in tensors]
            return
        self._tensors = [
            torch.empty(each.shape, dtype=each.dtype, pin_memory=True).copy_(
                each, non_blocking=True
            )
            for each in tensors
        ]
        # Whoever waits for it sleeps.
        self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._event.record()

    def ready(self) -> bool:
        """Whether they have arrived.

        Raises:
            DeviceLost: the device has failed.
        """
        with device_errors():
            return self._event is None or self._event.query()  # type: ignore[no-untyped-call]

    def tensors(self) -> list[torch.Tensor]:
        """The tensors, as soon as they have arrived.

        Raises:
            DeviceLost: the device has failed.
        """
        with device_errors():
            if self._event is not None:
                self._event.synchronize()
        return self._tensors


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """What another thread than the steps' does on the device: on CUDA in a stream of its own, and done at the end."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    # What it is given to read may still be on its way.
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(stream):
        yield
        stream.synchronize()


def graph_pool(device: torch.device) -> Any:
    """Memory for the graphs that are replayed one after the other, each output read before the next."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def recorded(
    work: Callable[[], torch.Tensor], device: torch.device, pool: Any
) -> Callable[[], torch.Tensor]:
    """The same work for less of the CPU's time: on CUDA a graph of its kernels, elsewhere the work itself.

    A graph reads and writes the same memory each time.

    Args:
        pool: memory that it shares with other graphs.
    """
    if device.type != "cuda":
        return work
    graph = torch.cuda.CUDAGraph()
    # Other threads go on giving the card work.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        output = work()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in the host's memory, in the same order of its numbers.

    It is not pinned: torch would take up to twice its size for it, and never give it back to the system.
    """
    return torch.empty_like(tensor, device="cpu").copy_(tensor)


def free_memory(device: torch.device) -> None:
    """Gives memory that torch keeps cached back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


class CudaMemory:
    """The memory of one CUDA device. Weights that leave when others are needed count as what steps take."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held = 0

    def free(self) -> int | None:
        free, _ = torch.cuda.mem_get_info(self._device)
        reserved = torch.cuda.memory_reserved(self._device)
        cached = reserved - torch.cuda.memory_allocated(self._device)
        return int(free + cached + offload.resident(self._device))

    def used(self) -> int | None:
        return int(torch.cuda.memory_reserved(self._device))

    def restart(self) -> int | None:
        torch.cuda.reset_peak_memory_stats(self._device)
        used = int(torch.cuda.memory_allocated(self._device)) - offload.resident(self._device)
        self._held = self._held or used
        return used - self._held

    def peak(self) -> int | None:
        return int(torch.cuda.max_memory_allocated(self._device)) - self._held


def memory_of(device: torch.device) -> DeviceMemory | None:
    """The memory that steps on this device take; None where it cannot be read."""
    if device.type == "cuda":
        return CudaMemory(device)
    return HostMemory(held=graphs.held) if device.type == "cpu" else None


def total_memory(device: torch.device) -> int | None:
    """Bytes of memory that this device, or the container of a CPU, has, free or not; None where it cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return HostMemory().total() if device.type == "cpu" else None


@contextmanager
def device_errors() -> Iterator[None]:
    """Tells the engine what a torch error means.

    Raises:
        OutOfMemory: the device has too little memory; a smaller batch may fit.
        DeviceLost: the CUDA context is broken, as it stays after an asynchronous error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error)) from error
    except MemoryError as error:
        raise OutOfMemory("the host is out of memory") from error
    except RuntimeError as error:
        message = str(error)
        if any(phrase in message.lower() for phrase in _MEMORY_MESSAGES):
            raise OutOfMemory(message) from error
        if "CUDA error" in message or "cudaError" in message:
            raise DeviceLost(message) from error
        raise
