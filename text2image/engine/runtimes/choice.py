"""Which runtime executes a model's networks, and the pipeline without what that does not need."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import (
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)

from text2image.core.settings import Settings
from text2image.engine import devices
from text2image.engine.layouts.folder import NOT_DRAWING
from text2image.engine.layouts.gguf_file import gguf_parts
from text2image.engine.layouts.opening import open_pipeline
from text2image.engine.runtimes import openvino, packing
from text2image.engine.runtimes.compression import compressed
from text2image.engine.runtimes.eager import TorchNetworks
from text2image.engine.runtimes.encoder import LazyEncoder, load_encoder
from text2image.engine.runtimes.networks import Networks
from text2image.engine.runtimes.offload import offload
from text2image.engine.runtimes.open import Opening, OpenNetwork
from text2image.engine.runtimes.quantize import Saving, is_host, quantize

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

logger = logging.getLogger(__name__)

LEFT_OUT = dict.fromkeys(NOT_DRAWING)
# What a runtime executes, and what encodes prompts for it.
NETWORKS = ("unet", "transformer", "vae")
TEXTS = tuple(f"{part}{end}" for part in ("tokenizer", "text_encoder") for end in ("", "_2", "_3"))


def runtime_of(settings: Settings, device: torch.device) -> str:
    """`torch`, `compile` or `openvino`.

    Raises:
        ValueError: the settings name one that is not here, or not for this device.
    """
    asked = "compile" if settings.compile and settings.runtime == "auto" else settings.runtime
    in_openvino = settings.quantize in ("none", "int8")
    if asked == "auto":
        fits = device.type == "cpu" and openvino.installed() and in_openvino
        return "openvino" if fits else "torch"
    if asked == "openvino" and device.type != "cpu":
        raise ValueError(
            f"T2I_RUNTIME=openvino computes on a CPU, and the device is {device}; set T2I_DEVICE=cpu or another runtime"
        )
    if asked == "openvino" and not openvino.installed():
        raise ValueError("T2I_RUNTIME=openvino, but OpenVINO is not here: pip install openvino")
    if asked == "openvino" and not in_openvino:
        raise ValueError(
            f"T2I_QUANTIZE={settings.quantize} is not OpenVINO's, which has int8; set that or T2I_RUNTIME=torch"
        )
    return asked


def saving_of(settings: Settings, device: torch.device, *, by_itself: bool) -> Saving:
    """How the settings make a model fit on this device.

    Args:
        by_itself: whether a pipeline draws by its own call, which torch executes on every device.

    Raises:
        ValueError: as `runtime_of` says, or what is asked for does not go together.
    """
    runtime = "torch" if by_itself else runtime_of(settings, device)
    offload = "" if settings.offload == "none" or is_host(device) else settings.offload
    if offload and runtime == "compile":
        raise ValueError(
            f"T2I_OFFLOAD={offload} moves weights, and what is compiled expects them where they were; "
            "set T2I_RUNTIME=torch"
        )
    return Saving("" if settings.quantize == "none" else settings.quantize, offload, runtime)


def networks_of(
    checkpoint: Checkpoint, *, upcast_decoder: bool = False, deep: bool = False
) -> tuple[Any, Networks]:
    """A diffusers pipeline, and what executes its network and decoder.

    Where OpenVINO does, the pipeline's own have no weights. Unless the settings name it, a model that it cannot execute
    is left to torch.

    Args:
        upcast_decoder: whether in fp16 an autoencoder that asks for it (`force_upcast`) computes in fp32, as it would
            overflow else.
        deep: whether passes are to take deep features from others (`deep.py`), in networks that can.

    Raises:
        ValueError: as `runtime_of` says, or OpenVINO was named and cannot execute this model.
    """
    settings, folder, device = checkpoint.settings, checkpoint.folder, checkpoint.device
    saving = checkpoint.saving
    runtime = saving.runtime
    if runtime == "openvino" and (quantized := gguf_parts(folder)):
        if settings.runtime == "openvino":
            raise ValueError(
                f"T2I_RUNTIME=openvino, and the weights of the {', '.join(quantized)} are in a GGUF file, which torch "
                "computes with; set T2I_RUNTIME=torch"
            )
        runtime = "torch"
    memory = devices.memory_of(device)
    free = memory.free() if memory else None
    if runtime == "openvino":
        try:
            return _with_openvino(checkpoint, upcast_decoder, deep=deep, free=free)
        except openvino.NotConverted as error:
            if settings.runtime == "openvino":
                raise ValueError(f"T2I_RUNTIME=openvino: {error}") from error
            if saving.quantize:
                # torch quantizes other layers, and would draw other pictures by the same revision.
                raise ValueError(f"{error}; set T2I_RUNTIME=torch") from error
            logger.warning("OpenVINO cannot execute this model, torch does: %s", error)
    pipeline = load_pipeline(checkpoint.folder, checkpoint.dtype)
    if upcast_decoder and _overflows(pipeline.vae, checkpoint.dtype):
        pipeline.vae.float()
    pipeline = fitted(pipeline, checkpoint)
    most_rows = settings.max_batch_rows or devices.max_rows(device)
    networks = TorchNetworks(
        network_of(pipeline),
        pipeline.vae,
        device,
        free=free,
        compiled_rows=most_rows if runtime == "compile" else 0,
        deep=deep,
        tiles=checkpoint.tiles,
    )
    if saving.offload:
        # Not before, since their weights have been laid out anew.
        offload(pipeline, device, saving.offload)
    return pipeline, networks


def fitted(pipeline: Any, checkpoint: Checkpoint) -> Any:
    """A pipeline that was loaded into the host's memory, quantized, and on the device unless it is offloaded."""
    saving = checkpoint.saving
    if saving.quantize:
        checkpoint.report(f"quantizing to {saving.quantize}")
        quantize(pipeline, saving.quantize)
    return pipeline if saving.offload else pipeline.to(checkpoint.device)


def _with_openvino(
    checkpoint: Checkpoint, upcast_decoder: bool, *, deep: bool, free: int | None
) -> tuple[Any, Networks]:
    """Inputs as `networks_of` has them; `free` are the bytes of memory that are free, where that is known.

    Raises:
        NotConverted: OpenVINO cannot execute this model.
    """
    folder = checkpoint.folder
    parts = _configurations(folder)
    weights = sum(each.numel() for part in parts.values() for each in part.parameters())
    converted_to = openvino.converted(
        folder, checkpoint.revision, checkpoint.settings, checkpoint.report, 4 * weights
    )
    if checkpoint.saving.quantize:
        checkpoint.report("compressing to int8")
        converted_to = compressed(converted_to, checkpoint.settings)
    checkpoint.report("compiling for OpenVINO")
    upcast = upcast_decoder and _overflows(parts["vae"], checkpoint.dtype)
    name = "transformer" if "transformer" in parts else "unet"
    side = sample_size(parts[name].config)
    networks = openvino.OpenVinoNetworks(
        converted_to,
        checkpoint.dtype,
        devices.computing_threads(checkpoint.settings),
        opening=_opening(checkpoint, parts[name]),
        decoder_dtype=torch.float32 if upcast else None,
        deep=deep,
        own_size=(side, side),
        # A transformer has no group normalizations, which gain by it.
        fixed_network=name == "unet",
        free=free,
        tiles=checkpoint.tiles,
        encoder=LazyEncoder(partial(load_encoder, folder, torch.float32)),
    )
    pipeline = load_pipeline(folder, torch.float32, without=NETWORKS).to(checkpoint.device)
    for name, part in parts.items():
        setattr(pipeline, name, part)
    return pipeline, networks


def _opening(checkpoint: Checkpoint, network: Any) -> Opening:
    """What makes torch's network beside OpenVINO's, whose weights are in no order that torch could read."""

    def make() -> OpenNetwork:
        device, dtype = checkpoint.device, checkpoint.dtype
        # The thread that it is called in is not the one that draws.
        devices.prepare_thread(device, 1)
        pipeline = load_pipeline(checkpoint.folder, dtype, without=("vae", *TEXTS))
        opened = network_of(pipeline).eval().to(device, memory_format=torch.channels_last)
        memory = devices.memory_of(device)
        packing.pack(opened, free=memory.free() if memory else None)
        return OpenNetwork(opened, device)

    numbers = sum(each.numel() for each in network.parameters())
    return Opening(make, numbers * checkpoint.dtype.itemsize)


def _overflows(vae: Any, dtype: torch.dtype) -> bool:
    return dtype == torch.float16 and bool(vae.config.force_upcast)


def load_pipeline(folder: Path, dtype: torch.dtype, *, without: Iterable[str] = ()) -> Any:
    """A diffusers pipeline of what draws, less the parts that are named."""
    kind, options = _kind(folder)
    known = inspect.signature(kind.__init__).parameters
    # Some pipelines must be told what is not there.
    absent = [part for part, of in kind.load_config(folder).items() if of == [None, None]]
    left_out = {part: None for part in (*LEFT_OUT, *without, *absent) if part in known}
    return open_pipeline(kind, folder, dtype, **left_out, **options)


def network_of(pipeline: Any) -> Any:
    """The network that a pipeline asks in each step: its U-Net or its transformer."""
    return pipeline.transformer if "transformer" in pipeline.config else pipeline.unet


def sample_size(config: Any) -> int:
    """The side of the latents that a network was made for; Flux, which names none, for 1024 pixels."""
    return int(config.get("sample_size") or 128)


# By the class that a pipeline was saved as: what it is loaded as, and told besides its parts. Pictures are as the
# network drew them, whatever packages for watermarks are there.
_KINDS: dict[str, tuple[Any, dict[str, bool]]] = {
    "StableDiffusionXLPipeline": (StableDiffusionXLPipeline, {"add_watermarker": False}),
    # SDXL's refiner.
    "StableDiffusionXLImg2ImgPipeline": (
        StableDiffusionXLImg2ImgPipeline,
        {"add_watermarker": False},
    ),
    "StableDiffusionXLInpaintPipeline": (StableDiffusionXLPipeline, {"add_watermarker": False}),
    "StableDiffusion3Pipeline": (StableDiffusion3Pipeline, {}),
    "FluxPipeline": (FluxPipeline, {}),
}
_OTHERS = (StableDiffusionPipeline, {"requires_safety_checker": False})


def _kind(folder: Path) -> tuple[Any, dict[str, bool]]:
    return _KINDS.get(StableDiffusionPipeline.load_config(folder)["_class_name"], _OTHERS)


def _configurations(folder: Path) -> dict[str, Any]:
    """The networks by their names in the pipeline, without their weights."""
    index, parts = StableDiffusionPipeline.load_config(folder), {}
    for name in (each for each in NETWORKS if each in index):
        kind = getattr(diffusers, index[name][1])
        with torch.device("meta"):
            parts[name] = kind.from_config(kind.load_config(folder, subfolder=name))
    return parts
