"""How many bytes a model's weights take, before any are read: from headers, or from configurations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from text2image.core.model_names import is_single_file
from text2image.engine.layouts.folder import NOT_DRAWING
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


def weight_bytes(folder: Path, bytes_each: int) -> int:
    """Bytes of a pipeline's weights with so many for each number; of files without a header, their own."""
    total = 0
    for part in folder.iterdir():
        if part.is_dir() and (part / "config.json").is_file() and part.name not in NOT_DRAWING:
            # The same weights may be there in several forms, as in half precision too.
            total += max(_forms(part, bytes_each), default=0)
    return total


def file_bytes(file: Path, bytes_each: int) -> int:
    """Bytes of a checkpoint's weights with so many for each number; without a header, its own."""
    return numbers_in(file) * bytes_each if file.suffix == ".safetensors" else file.stat().st_size


def _forms(part: Path, bytes_each: int) -> Iterator[int]:
    """The bytes of each form in which a part's weights are there."""
    forms: dict[str, int] = {}
    for file in part.iterdir():
        if file.suffix == ".safetensors":
            # `model.fp16-00001-of-00002.safetensors`: shards belong together, variants do not.
            form = file.name.partition("-0")[0].removesuffix(".safetensors")
            forms[form] = forms.get(form, 0) + numbers_in(file) * bytes_each
        elif file.suffix == ".bin":
            form = f"{file.name.partition('-0')[0]} bin"
            forms[form] = forms.get(form, 0) + file.stat().st_size
    yield from forms.values()


def numbers_in(file: Path) -> int:
    """How many numbers a safetensors file holds, from its header alone.

    Raises:
        ValueError: it is no such file.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= file.stat().st_size:
            raise ValueError(f"{file} is no safetensors file, or is cut off")
        header = json.loads(opened.read(length))
    return sum(math.prod(each["shape"]) for name, each in header.items() if name != "__metadata__")
