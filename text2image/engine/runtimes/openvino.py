"""Networks executed by OpenVINO on a CPU.

GNU OpenMP's threads, which torch computes with, spin while they wait for each other: beside one other busy process a
step takes ten times as long and more. OpenVINO's threads take over each other's work instead. A lone picture is also
half as much work, since layers are fused; a full batch is about the same.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess  # nosec B404
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from text2image.core.settings import Settings
from text2image.engine.host_memory import HostMemory
from text2image.engine.models.contract import OutOfMemory
from text2image.engine.runtimes import SHIPPED

logger = logging.getLogger(__name__)

UNET, DECODER = "unet.xml", "decoder.xml"
# What is written changes with this, or with the version of OpenVINO.
_FORMAT = 1
# What `T2I_DTYPE` means here. Inputs and outputs stay in fp32.
_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
# What stands in an output before a network runs. Out of memory, OpenVINO may return without a word and leave it there.
# Exact in fp32, and no number of a network's.
_UNTOUCHED = -(2.0**120)
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


class OpenVinoNetworks:
    """A converted U-Net and decoder."""

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        threads: int,
        *,
        decoder_dtype: torch.dtype | None = None,
    ) -> None:
        """Compiles them for this CPU.

        Args:
            dtype: the precision of the arithmetic, where this CPU has it.
            decoder_dtype: the decoder's, if it is another.
            threads: those that compute, the calling one included.
        """
        import openvino

        core = openvino.Core()
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # A core that another process is busy on is left to it.
            "ENABLE_CPU_PINNING": False,
        }
        precisions = {UNET: dtype, DECODER: decoder_dtype or dtype}
        self._compiled = [
            core.compile_model(
                folder / name, "CPU", {**options, "INFERENCE_PRECISION_HINT": _PRECISIONS[each]}
            )
            for name, each in precisions.items()
        ]
        self._unet, self._decoder = (each.create_infer_request() for each in self._compiled)
        self._tensor: Any = openvino.Tensor
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
        # In the order in which they were traced.
        inputs = (latents, timesteps, embeddings, pooled, time_ids, guidance)
        return self._run(self._unet, [each for each in inputs if each is not None], latents.shape)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        rows, _, height, width = latents.shape
        if self._scale is None:
            # Nothing tells it but a first picture.
            array = latents[:1].float().contiguous().numpy()
            self._scale = self._decoder.infer([array])[0].shape[-1] // width
        sides = (height * self._scale, width * self._scale)
        return self._run(self._decoder, [latents], (rows, 3, *sides))

    def free_memory(self) -> None:
        for each in self._compiled:
            each.release_memory()

    def _run(
        self, network: Any, inputs: list[torch.Tensor], shape: tuple[int, ...]
    ) -> torch.Tensor:
        # A tensor of ours, since the network's own would be written over by the next call.
        output = torch.empty(shape)
        output.view(-1)[[0, -1]] = _UNTOUCHED
        network.set_output_tensor(self._tensor(output.numpy(), shared_memory=True))
        arrays = [each.float().contiguous().numpy() for each in inputs]
        network.infer(arrays, share_inputs=True)
        if _UNTOUCHED in output.view(-1)[[0, -1]].tolist():
            raise OutOfMemory("OpenVINO put nothing out")
        return output
