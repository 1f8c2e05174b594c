"""The header of a safetensors file: the names, types and shapes of its tensors, read without their data.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length of the header, little-endian, the header
in JSON, then the data. No torch is needed for it, and a header of gigabytes of weights is read in a millisecond.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# As the reference implementation has it.
_MOST_HEADER_BYTES = 100_000_000
_MIB = 1 << 20
# What lies in the place of weights when something went wrong, by how it begins.
_IMPOSTORS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the weights; run `git lfs pull`",
    b"<!DOCTYPE": "is a web page, not weights; fetch it again",
    b"<html": "is a web page, not weights; fetch it again",
    b"PK\x03\x04": "is a pickle of PyTorch's under another name; call it .ckpt or .bin",
    b"GGUF": "is a GGUF file under another name; call it .gguf",
}


class Unreadable(Exception):
    """A file that holds no weights, or not all of them; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file; `dtype` as safetensors writes it: F32, BF16, I64, F8_E4M3."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a file by name, and what its maker says of it."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]

    @property
    def numbers(self) -> int:
        """How many numbers its tensors hold."""
        return sum(math.prod(each.shape) for each in self.tensors.values())


def read_header(path: Path) -> Header:
    """
    Raises:
        OSError: the file is not there, or may not be read.
        Unreadable: it is no safetensors file, or its end is missing.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(32)
        for mark, problem in _IMPOSTORS.items():
            if begin.startswith(mark):
                raise Unreadable(problem)
        length = int.from_bytes(begin[:8], "little")
        if size < 8:
            raise Unreadable("is empty" if not size else "ends within its header; fetch it again")
        if length > _MOST_HEADER_BYTES:
            raise Unreadable("is no safetensors file")
        if length > size - 8:
            raise Unreadable("ends within its header; fetch it again")
        file.seek(8)
        text = file.read(length)
    try:
        entries: dict[str, Any] = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        tensors = {
            name: Stored(str(entry["dtype"]), tuple(map(int, entry["shape"])))
            for name, entry in entries.items()
        }
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
    ):
        raise Unreadable("is no safetensors file") from None
    if not tensors:
        raise Unreadable("holds no tensors")
    there = size - 8 - length
    if end > there:
        raise Unreadable(
            f"has {there / _MIB:.1f} of its {end / _MIB:.1f} MiB of weights; fetch it again"
        )
    return Header(tensors, {str(name): str(value) for name, value in metadata.items()})


# What torch calls the types that weights are stored in.
_TORCH_NAMES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
}


def read_tensors(path: Path) -> Header:
    """What `read_header` tells, of PyTorch's pickles (.bin, .ckpt) too, of which no code is run, and of GGUF.

    Raises:
        OSError, Unreadable: as `read_header` says.
    """
    if path.suffix == ".safetensors":
        return read_header(path)
    if path.suffix == ".gguf":
        from text2image.engine.layouts.gguf_file import read_gguf

        return read_gguf(path)
    tensors = load_pickle(path)
    stored = {
        name: Stored(_TORCH_NAMES.get(str(each.dtype), str(each.dtype)), tuple(each.shape))
        for name, each in tensors.items()
    }
    return Header(stored, {})


def load_pickle(path: Path, wrappers: Sequence[str] = ("state_dict",)) -> dict[str, Any]:
    """The tensors of a PyTorch pickle; where its format allows, their data stays on disk until it is looked at.

    Args:
        wrappers: names that they may be saved under, the first that is there.

    Raises:
        OSError: the file is not there, or may not be read.
        Unreadable: it holds anything but tensors and plain values, or is damaged.
    """
    import pickle  # nosec B403
    import zipfile

    import torch

    with path.open("rb") as file:
        begin = file.read(32)
    if problem := next((text for mark, text in _IMPOSTORS.items() if begin.startswith(mark)), None):
        if not begin.startswith(b"PK"):
            raise Unreadable(problem)
    elif not begin:
        raise Unreadable("is empty")
    try:
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise Unreadable(
            "holds code beside its weights, which is not run here; save it as .safetensors"
        ) from None
    except Exception as error:
        # Those who read zip files, pickles and tensors have errors of their own, some of which say nothing.
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"is damaged ({why}); fetch it again") from None
    while isinstance(content, dict):
        inner = [content[name] for name in wrappers if isinstance(content.get(name), dict)]
        if not inner:
            break
        content = inner[0]
    tensors = {
        str(name): value
        for name, value in (content.items() if isinstance(content, dict) else ())
        if isinstance(value, torch.Tensor)
    }
    if not tensors:
        raise Unreadable("holds no tensors")
    return tensors
