"""A converted network: one graph for batches of any shape, and faster ones for the batches that come most.

OpenVINO fuses a group normalization with the activation after it only where every shape is known; such a graph takes a
quarter less time. So at the model's own size batches are cut into pieces of a few fixed numbers of rows: eleven rows
are 8 + 2 + 1. Those that are asked for often get a graph of their own, which is compiled beside the steps; the others
go through the open graph together. Nothing is padded, so that the time of a step grows with its rows as before.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch

from text2image.engine.models.contract import OutOfMemory

logger = logging.getLogger(__name__)

# Rows of the pieces. Larger ones gain nothing more: their tensors leave the caches.
PIECES = (8, 4, 2, 1)
# Calls after which a piece gets a graph of its own: they gain about the time that compiling one takes.
WORTH = 50
# A graph keeps the weights in the order of its kernels beside the mapped file, and the kernels.
_WEIGHT_COPIES, _KERNEL_BYTES = 2, 64 << 20
# What stands in an output before a network runs. Out of memory, OpenVINO may return without a word and leave it there.
# Exact in fp32, and no number of a network's.
_UNTOUCHED = -(2.0**120)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Room:
    """Memory for the graphs of fixed sizes of one model: bytes that they hold.

    Attributes:
        limit: bytes that they and those of all other models hold at the most.
    """

    limit: int
    held: int = 0

    def __post_init__(self) -> None:
        _rooms[:] = [*(each for each in _rooms if each()), weakref.ref(self)]

    def take(self, size: int) -> bool:
        """Takes so many bytes for as long as the model is loaded, if there are as many."""
        if held() + size > self.limit:
            return False
        self.held += size
        return True


# Of all models that are loaded in this process; they come and go in other threads than the engine's.
_rooms: list[weakref.ref[Room]] = []


def held() -> int:
    """Bytes that the graphs of fixed sizes of all loaded models hold."""
    return sum(room.held for each in tuple(_rooms) if (room := each()))


@dataclass(frozen=True, slots=True)
class Recipe:
    """What graphs are compiled from.

    Attributes:
        core: OpenVINO's.
        path: the network as OpenVINO reads it. Its first input is of latents (rows, C, h, w).
        options: what it is compiled with.
        outputs: those that are wanted, from the first on.
        own_size: (h, w) of the latents that fixed graphs are for; None for no such graphs.
    """

    core: Any
    path: Path
    options: dict[str, Any]
    outputs: int = 1
    own_size: tuple[int, int] | None = None

    def compiled(self, rows: int | None = None) -> Any:
        """The graph for any shape, or the one for so many rows at the own size."""
        model = self.core.read_model(self.path)
        for unwanted in model.get_results()[self.outputs :]:
            model.remove_result(unwanted)
        if rows is not None:
            model.reshape({port: self._fixed(port.partial_shape, rows) for port in model.inputs})
        return self.core.compile_model(model, "CPU", self.options)

    def _fixed(self, shape: Any, rows: int) -> Any:
        shape[0] = rows
        # Latents, and the features of the same size; embeddings keep their open number of tokens.
        if len(shape) == 4:
            for axis, side in enumerate(self.own_size or (), start=2):
                shape[axis] = side
        return shape


class Graphs:
    """One network and its compiled graphs. Called from one thread; each fixed graph is compiled in another."""

    def __init__(self, recipe: Recipe, room: Room) -> None:
        """Compiles the open graph.

        Args:
            room: what the fixed ones may hold.
        """
        self._recipe, self._room = recipe, room
        compiled = recipe.compiled()
        self._compiled = [compiled]
        self._open = compiled.create_infer_request()
        weights = recipe.path.with_suffix(".bin").stat().st_size
        self._each = _WEIGHT_COPIES * weights + _KERNEL_BYTES
        # By rows: graphs that are ready, and the calls that could have used one. Replaced as a whole, since another
        # thread adds to it.
        self._fixed: dict[int, Any] = {}
        self._asked: Counter[int] = Counter()
        self._compiling: Thread | None = None

    def run(
        self, inputs: Sequence[torch.Tensor], *shapes: tuple[int, ...]
    ) -> tuple[torch.Tensor, ...]:
        """The network's outputs, each (rows, *shape), in tensors that no later call touches.

        Raises:
            OutOfMemory: with fewer rows it may fit.
        """
        arrays = [each.float().contiguous().numpy() for each in inputs]
        rows, sides = len(arrays[0]), arrays[0].shape[2:]
        outputs = tuple(torch.empty((rows, *shape)) for shape in shapes)
        whole = [(slice(rows), self._open)]
        for part, request in self._parts(rows) if sides == self._recipe.own_size else whole:
            _infer(request, [each[part] for each in arrays], [each[part] for each in outputs])
        return outputs

    def width_of(self, latents: torch.Tensor) -> int:
        """The last side of what comes out for latents (rows, C, h, w)."""
        return int(self._open.infer([latents.float().contiguous().numpy()])[0].shape[-1])

    def channels_of(self, output: int) -> int | None:
        """The second side of an output, counted from 0; None where the graph leaves it open."""
        side = self._compiled[0].outputs[output].partial_shape[1]
        return None if side.is_dynamic else int(side.get_length())

    def free_memory(self) -> None:
        """Gives back what was kept for later calls."""
        for each in self._compiled:
            each.release_memory()

    def settle(self) -> None:
        """Returns when nothing is being compiled."""
        if self._compiling is not None:
            self._compiling.join()

    def _parts(self, rows: int) -> Iterator[tuple[slice, Any]]:
        """The rows of each call for a batch, and what executes it."""
        fixed, start = self._fixed, 0
        left = rows
        for piece in PIECES:
            count, left = divmod(left, piece)
            if count and piece not in fixed:
                self._ask(piece)
                continue
            for _ in range(count):
                yield slice(start, start + piece), fixed[piece]
                start += piece
        if start < rows:
            yield slice(start, rows), self._open

    def _ask(self, piece: int) -> None:
        """Counts a call without a graph of its own, and begins to compile one when it is time."""
        self._asked[piece] += 1
        busy = self._compiling is not None and self._compiling.is_alive()
        if self._asked[piece] < WORTH or busy or not self._room.take(self._each):
            return
        # Not a daemon: a process that ended in the middle of it would crash. It keeps no hold of the graphs, so that a
        # model that leaves meanwhile is gone at once, and what is being compiled as soon as it is ready.
        arguments = (self._recipe, piece, weakref.ref(self))
        self._compiling = Thread(target=_compile, args=arguments, name="compiling")
        self._compiling.start()

    def take_in(self, rows: int, compiled: Any) -> None:
        """Draws with a fixed graph from now on. Called in the thread that has compiled it."""
        self._compiled.append(compiled)
        self._fixed = {**self._fixed, rows: compiled.create_infer_request()}

    def give_up(self) -> None:
        """Compiles no more graphs for this model."""
        self._room.limit = 0


def _compile(recipe: Recipe, rows: int, owner: weakref.ref[Graphs]) -> None:
    try:
        compiled = recipe.compiled(rows)
        if graphs := owner():
            graphs.take_in(rows, compiled)
    except Exception as error:
        # The open graph does as well, and what failed once is not tried again.
        logger.warning("no graph of %d rows, steps are slower without: %s", rows, error)
        if graphs := owner():
            graphs.give_up()


def _infer(request: Any, inputs: list[np.ndarray], outputs: list[torch.Tensor]) -> None:
    """Has the network write its outputs to contiguous tensors.

    Raises:
        OutOfMemory: it did not.
    """
    import openvino

    for place, output in enumerate(outputs):
        output.view(-1)[[0, -1]] = _UNTOUCHED
        request.set_output_tensor(place, openvino.Tensor(output.numpy(), shared_memory=True))
    request.infer(inputs, share_inputs=True)
    if any(_UNTOUCHED in output.view(-1)[[0, -1]].tolist() for output in outputs):
        raise OutOfMemory("OpenVINO put nothing out")
