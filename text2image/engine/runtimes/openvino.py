"""Networks executed by OpenVINO on a CPU.

GNU OpenMP's threads, which torch computes with, spin while they wait for each other: beside one other busy process a
step takes ten times as long and more. OpenVINO's threads take over each other's work instead. Pictures are also less
work, since layers are fused (`graphs.py`).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess  # nosec B404
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from text2image.core.settings import Settings
from text2image.engine.host_memory import HostMemory
from text2image.engine.runtimes import SHIPPED
from text2image.engine.runtimes.encoder import LazyEncoder
from text2image.engine.runtimes.graphs import Graphs, Recipe, Room, held
from text2image.engine.runtimes.open import Opening
from text2image.engine.runtimes.tiling import WHOLE, Tiles

logger = logging.getLogger(__name__)

UNET, OUTER, DECODER = "unet.xml", "outer.xml", "decoder.xml"
# What is written changes with this, or with the version of OpenVINO.
_FORMAT = 2
# What `T2I_DTYPE` means here. Inputs and outputs stay in fp32.
_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
# Graphs of fixed sizes take this share of the free memory at the most.
MEMORY_SHARE = 0.25
# What converting takes of memory, as a multiple of the weights: torch's, and OpenVINO's as it computes with them.
_COPIES = 2.2
_ROOT = Path(__file__).parents[3]


class NotConverted(Exception):
    """OpenVINO cannot execute this model; the text says why."""


def installed() -> bool:
    """Whether OpenVINO is there."""
    return importlib.util.find_spec("openvino") is not None


def converted(
    folder: Path, revision: str, settings: Settings, report: Callable[[str], None], weights: int
) -> Path:
    """The folder of the model's networks as OpenVINO reads them; converted now if that was never done.

    Args:
        folder: a pipeline in diffusers' format.
        revision: changes with its weights.
        weights: bytes of the networks in fp32.

    Raises:
        NotConverted: it cannot be done.
    """
    name = name_of(revision)
    shipped, kept = folder / SHIPPED / name, settings.cache_root / "openvino" / name
    for there in (shipped, kept):
        if (there / DECODER).exists():
            return there
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        # One process of several that start at once does it.
        with FileLock(kept.with_suffix(".lock")):
            if not (kept / DECODER).exists():
                _check_room(weights)
                report("converting the model for OpenVINO, once; T2I_RUNTIME=torch does without")
                _convert(folder, kept)
    except OSError as error:
        raise NotConverted(str(error)) from error
    return kept


def _check_room(weights: int) -> None:
    """
    Raises:
        NotConverted: there is too little memory, and the kernel might end another process in place of the conversion.
    """
    needed, free = _COPIES * weights, HostMemory().free()
    if free is not None and free < needed:
        raise NotConverted(
            f"converting it takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        )


def name_of(revision: str) -> str:
    """The name of the folder that a model is converted into."""
    return f"{revision}-{_FORMAT}-{version('openvino')}"


def _convert(folder: Path, target: Path) -> None:
    # In a process of its own, since what tracing a network leaves behind in memory stays there.
    command = [sys.executable, "-m", "text2image.engine.runtimes.conversion", str(folder)]
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    # Of this very Python, with two paths.
    done = subprocess.run(  # nosec B603
        [*command, str(target)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        logger.debug("%s", done.stderr)
        last = done.stderr.strip().rpartition("\n")[2]
        raise NotConverted(last or f"the conversion ended with {done.returncode}")


@cache
def _core() -> Any:
    """OpenVINO's, one for the process.

    With AMX each new one gives its thread a stack for signals. Of several that end in another order than they began in,
    the last leaves the thread with one that is gone, and the next signal would end the process.
    """
    import openvino

    return openvino.Core()


class OpenVinoNetworks:
    """A converted U-Net and decoder."""

    open: Opening

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        threads: int,
        *,
        opening: Opening | None = None,
        decoder_dtype: torch.dtype | None = None,
        deep: bool = False,
        own_size: tuple[int, int] | None = None,
        fixed_network: bool = True,
        free: int | None = None,
        encoder: LazyEncoder | None = None,
        tiles: Tiles = WHOLE,
    ) -> None:
        """Compiles them for this CPU.

        Args:
            dtype: the precision of the arithmetic, where this CPU has it.
            decoder_dtype: the decoder's, if it is another.
            threads: those that compute, the calling one included.
            opening: makes the network as torch executes it; None where no batch will need it.
            deep: whether passes are to take deep features from others.
            own_size: (h, w) of the latents that come most, which graphs of fixed sizes are compiled for; None for none.
            fixed_network: whether these are worth their memory for the network too, as for the decoder.
            free: bytes of memory that are free, where that is known.
            encoder: torch's, since a picture is encoded once, and few are.
            tiles: how pictures are decoded.
        """
        self.tiles = tiles
        if opening:
            self.open = opening
        self._encoder = encoder
        core = _core()
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # A core that another process is busy on is left to it.
            "ENABLE_CPU_PINNING": False,
        }
        self._room = Room(int(MEMORY_SHARE * (held() + free)) if free else 0)

        def graphs(
            name: str, precision: torch.dtype, *, fixed: bool = True, outputs: int = 1
        ) -> Graphs:
            compiled = Recipe(
                core,
                folder / name,
                {**options, "INFERENCE_PRECISION_HINT": _PRECISIONS[precision]},
                outputs,
                own_size if fixed else None,
            )
            return Graphs(compiled, self._room)

        self._unet = graphs(UNET, dtype, fixed=fixed_network, outputs=2 if deep else 1)
        self._outer = graphs(OUTER, dtype) if deep else None
        self._decoder = graphs(DECODER, decoder_dtype or dtype)
        self._scale: int | None = None

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None = None,
        *,
        pooled: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self._outer:
            return self.predict_whole(latents, timesteps, embeddings, guidance)[0]
        # In the order in which they were traced.
        inputs = (latents, timesteps, embeddings, pooled, time_ids, guidance)
        return self._unet.run(_given(inputs), self._output_of(latents))[0]

    def predict_whole(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = (latents, timesteps, embeddings, guidance)
        features_shape = (self._unet.channels_of(1), *latents.shape[2:])
        output, features = self._unet.run(_given(inputs), self._output_of(latents), features_shape)
        return output, features

    def predict_outer(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        features: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert self._outer is not None
        inputs = (latents, timesteps, embeddings, features, guidance)
        return self._outer.run(_given(inputs), self._output_of(latents))[0]

    def _output_of(self, latents: torch.Tensor) -> tuple[int, ...]:
        """The shape of a row that the network puts out; for inpainting it takes more channels than that."""
        channels = self._unet.channels_of(0) or latents.shape[1]
        return (channels, *latents.shape[2:])

    def prepare_encoder(self) -> None:
        if self._encoder:
            self._encoder.prepare()

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        assert self._encoder is not None
        return self._encoder.encode(pictures)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        height, width = latents.shape[2:]
        if self._scale is None:
            # Nothing tells it but a first picture.
            self._scale = self._decoder.width_of(latents[:1]) // width
        sides = (height * self._scale, width * self._scale)
        return self._decoder.run([latents], (3, *sides))[0]

    def free_memory(self) -> None:
        for each in self._all():
            each.free_memory()

    def settle(self) -> None:
        """Returns when no graph is being compiled."""
        for each in self._all():
            each.settle()

    def _all(self) -> list[Graphs]:
        return [each for each in (self._unet, self._outer, self._decoder) if each]


def _given(inputs: tuple[torch.Tensor | None, ...]) -> list[torch.Tensor]:
    """The inputs of a network that has no others."""
    return [each for each in inputs if each is not None]
