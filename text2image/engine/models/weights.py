"""How many bytes a model's weights take, before any are read: from headers, or from configurations."""

from __future__ import annotations

from pathlib import Path

import torch

from text2image.core.model_names import is_single_file
from text2image.engine.layouts.sizes import numbers_in, weight_bytes
from text2image.engine.preflight.files import Files
from text2image.engine.preflight.networks import build_networks
from text2image.engine.runtimes import quantize
from text2image.engine.runtimes.quantize import Saving


def bytes_on_device(model: str, folder: Path, dtype: torch.dtype, saving: Saving) -> int:
    """Bytes of a model's weights that a device holds at once.

    Args:
        model: as the settings name it.
        folder: where it lies.
        dtype: of what is not quantized.

    Raises:
        ValueError, OSError: a file cannot be read.
    """
    if saving.quantize or saving.offload:
        return quantize.weight_bytes(build_networks(Files(folder)), dtype, saving)
    if is_single_file(model):
        return file_bytes(Path(model).expanduser(), dtype.itemsize)
    return weight_bytes(folder, dtype.itemsize)


def file_bytes(file: Path, bytes_each: int) -> int:
    """Bytes of a checkpoint's weights with so many for each number; without a header, its own."""
    return numbers_in(file) * bytes_each if file.suffix == ".safetensors" else file.stat().st_size
