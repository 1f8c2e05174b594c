"""Which runtime executes a model's networks, and the pipeline without what that does not need."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline

from text2image.core.settings import Settings
from text2image.engine import devices
from text2image.engine.layouts.folder import NOT_DRAWING
from text2image.engine.layouts.opening import open_pipeline
from text2image.engine.runtimes import openvino
from text2image.engine.runtimes.eager import TorchNetworks
from text2image.engine.runtimes.networks import Networks

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

logger = logging.getLogger(__name__)

LEFT_OUT = dict.fromkeys(NOT_DRAWING)


def runtime_of(settings: Settings, device: torch.device) -> str:
    """`torch`, `compile` or `openvino`.

    Raises:
        ValueError: the settings name one that is not here, or not for this device.
    """
    asked = "compile" if settings.compile and settings.runtime == "auto" else settings.runtime
    if asked == "auto":
        return "openvino" if device.type == "cpu" and openvino.installed() else "torch"
    if asked == "openvino" and device.type != "cpu":
        raise ValueError(
            f"T2I_RUNTIME=openvino computes on a CPU, and the device is {device}; set T2I_DEVICE=cpu or another runtime"
        )
    if asked == "openvino" and not openvino.installed():
        raise ValueError("T2I_RUNTIME=openvino, but OpenVINO is not here: pip install openvino")
    return asked


def networks_of(checkpoint: Checkpoint) -> tuple[Any, Networks]:
    """A diffusers pipeline, and what executes its U-Net and decoder.

    Where OpenVINO does, the pipeline's own have no weights. Unless the settings name it, a model that it cannot execute
    is left to torch.

    Raises:
        ValueError: as `runtime_of` says, or OpenVINO was named and cannot execute this model.
    """
    settings, folder, device = checkpoint.settings, checkpoint.folder, checkpoint.device
    runtime = runtime_of(settings, device)
    if runtime == "openvino":
        try:
            converted = openvino.converted(folder, checkpoint.revision, settings, checkpoint.report)
            checkpoint.report("compiling for OpenVINO")
            threads = devices.computing_threads(settings)
            networks: Networks = openvino.OpenVinoNetworks(converted, checkpoint.dtype, threads)
            return _without_networks(folder, device), networks
        except openvino.NotConverted as error:
            if settings.runtime == "openvino":
                raise ValueError(f"T2I_RUNTIME=openvino: {error}") from error
            logger.warning("OpenVINO cannot execute this model, torch does: %s", error)
    pipeline = load_pipeline(folder, checkpoint.dtype).to(device)
    memory = devices.memory_of(device)
    free = memory.free() if memory else None
    most_rows = settings.max_batch_rows or devices.max_rows(device)
    networks = TorchNetworks(
        pipeline.unet,
        pipeline.vae,
        device,
        free=free,
        compiled_rows=most_rows if runtime == "compile" else 0,
    )
    return pipeline, networks


def load_pipeline(folder: Path, dtype: torch.dtype, **without: None) -> Any:
    """A diffusers pipeline of what draws, less the parts that are named."""
    left_out = LEFT_OUT | without
    return open_pipeline(
        StableDiffusionPipeline, folder, dtype, **left_out, requires_safety_checker=False
    )


def _without_networks(folder: Path, device: torch.device) -> Any:
    """The pipeline with a U-Net and an autoencoder that are configurations alone."""
    pipeline = load_pipeline(folder, torch.float32, unet=None, vae=None).to(device)
    index = StableDiffusionPipeline.load_config(folder)
    for part in ("unet", "vae"):
        kind = getattr(diffusers, index[part][1])
        with torch.device("meta"):
            setattr(pipeline, part, kind.from_config(kind.load_config(folder, subfolder=part)))
    return pipeline
