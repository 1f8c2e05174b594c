"""A network that torch.compile makes faster for a few numbers of rows, while it goes on serving as it is.

What is compiled holds for one shape of its inputs, so rows are padded up to the next *bucket*, and a shape is compiled
when it was asked for a few times. A thread beside the steps does that; from then on they take what it made.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from threading import Lock, Thread, current_thread
from types import FunctionType
from typing import Any

import torch

from text2image.engine import devices
from text2image.engine.models.contract import OutOfMemory

logger = logging.getLogger(__name__)

# What torch.compile makes code with.
BACKEND: Any = "inductor"
# Passes of a shape after which it is worth compiling: more than the warm-up takes, fewer than most pictures.
WORTH = 8
# Shapes that are compiled at the most, whatever sizes are asked for.
MOST_SHAPES = 32
# Seconds that the process waits for a compilation to stop when it ends.
LAST_SECONDS = 2.0
# The first passes of what is compiled pay for what is set up once.
_FIRST_PASSES = 2

# Threads that compile now.
_workers: set[Thread] = set()

# Tensors (rows, ...) to one, (rows, ...).
Network = Callable[..., torch.Tensor]
# Rows of a bucket, and the shapes of a row of each input.
Shape = tuple[int, tuple[torch.Size, ...]]


def bucket_of(rows: int, most: int) -> int:
    """The rows that so many are padded to: 1, 2, 4, 8, 12, 16, 24, 32, 48, 64 and so on, and `most` before any more."""
    size = 1 << (rows - 1).bit_length()
    if size > 8 and rows <= size * 3 // 4:
        size = size * 3 // 4
    return max(rows, min(size, most))


class Bucket:
    """A network compiled for one shape. Its inputs lie where it was compiled to read them."""

    def __init__(self, network: Network, row: Sequence[torch.Tensor], rows: int, pool: Any) -> None:
        """Compiles it and runs it, in the calling thread.

        Args:
            row: of each input one row (1, ...), of which all are made at first.
            pool: as `devices.recorded` takes it.
        """
        self._inputs = inputs = [_repeated(each, rows) for each in row]
        compiled = torch.compile(_own(network), dynamic=False, fullgraph=True, backend=BACKEND)
        for _ in range(_FIRST_PASSES):
            compiled(*inputs)
        self._run = devices.recorded(lambda: compiled(*inputs), row[0].device, pool)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The network's output for no more rows than it was compiled for."""
        rows = len(inputs[0])
        for place, given in zip(self._inputs, inputs, strict=True):
            # The rows behind keep what they had: numbers of an earlier pass, whose output nobody reads.
            place[:rows].copy_(given)
        # A copy, since a graph writes to the same memory the next time.
        return self._run()[:rows].clone()


class Buckets:
    """A network, compiled for the shapes that are asked for. Called from the engine's thread."""

    def __init__(self, network: Network, device: torch.device, *, most_rows: int) -> None:
        """
        Args:
            network: its rows depend on nothing but themselves.
            most_rows: of the largest batch that is padded.
        """
        self._network = network
        self._device = device
        self._most_rows = most_rows
        self._pool = devices.graph_pool(device)
        self._asked: Counter[Shape] = Counter()
        self._made: dict[Shape, Bucket] = {}
        # What the worker has before it: a row of each input. Shared with it, as are the next three.
        self._due: dict[Shape, list[torch.Tensor]] = {}
        self._taken = 0
        self._given_up = False
        self._worker: Thread | None = None
        self._lock = Lock()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The network's output; of tensors (rows, ...) each."""
        rows = bucket_of(len(inputs[0]), self._most_rows)
        shape = (rows, tuple(each.shape[1:] for each in inputs))
        if made := self._made.get(shape):
            return made(*inputs)
        self._ask(shape, inputs)
        return self._network(*inputs)

    def _ask(self, shape: Shape, inputs: Sequence[torch.Tensor]) -> None:
        """Counts a pass that was not a compiled one, and has the shape compiled if there are many."""
        self._asked[shape] += 1
        if self._asked[shape] != WORTH:
            return
        with self._lock:
            if self._given_up or self._taken == MOST_SHAPES:
                return
            self._taken += 1
            self._due[shape] = [each[:1].clone() for each in inputs]
            if self._worker is None:
                self._worker = Thread(target=self._work, name="compile", daemon=True)
                _workers.add(self._worker)
                self._worker.start()

    def _work(self) -> None:
        """Compiles what is due, what is asked for most first, until there is nothing more."""
        while True:
            with self._lock:
                if self._given_up or not self._due:
                    _workers.discard(current_thread())
                    self._worker = None
                    return
                shape = max(self._due, key=lambda each: self._asked[each])
                row = self._due.pop(shape)
            self._compile(shape, row)

    def _compile(self, shape: Shape, row: list[torch.Tensor]) -> None:
        rows = shape[0]
        try:
            with devices.device_errors(), devices.beside(self._device), torch.inference_mode():
                bucket = Bucket(self._network, row, rows, self._pool)
        except OutOfMemory as error:
            logger.warning(
                "no memory to compile for %d rows, which run as they are: %s", rows, error
            )
        except Exception as error:
            self._given_up = True
            logger.warning("the network is not compiled and runs as it is: %s", _first_line(error))
            logger.debug("compiling for %d rows", rows, exc_info=error)
        else:
            self._made[shape] = bucket
            logger.info("compiled for %d rows of %s", rows, "x".join(map(str, shape[1][0])))


@atexit.register
def _stop() -> None:
    """Stops what is being compiled, since a thread that is inside of C++ when Python ends aborts the process.

    It stops at its next line of Python; one that does not come to any is left behind.
    """
    for worker in list(_workers):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(worker.ident or 0), ctypes.py_object(SystemExit)
        )
        worker.join(LAST_SECONDS)


def _own(network: Network) -> Network:
    """The network as a function of its own: torch keeps what it has compiled by code, and only so much for each."""

    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        return network(*inputs)

    return FunctionType(
        forward.__code__.replace(), forward.__globals__, closure=forward.__closure__
    )


def _repeated(row: torch.Tensor, rows: int) -> torch.Tensor:
    """So many copies of a row, in the order in memory that networks are given."""
    layout = torch.channels_last if row.ndim == 4 else torch.contiguous_format
    return row.repeat(rows, *[1] * (row.ndim - 1)).contiguous(memory_format=layout)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]
