"""How large the weights of a pipeline's folder are once they are loaded, from the headers of its files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from text2image.engine.layouts.folder import GGUF, NOT_DRAWING


def weight_bytes(folder: Path, bytes_each: int) -> int:
    """Bytes of a pipeline's weights with so many for each number; of files without a header, their own."""
    total = 0
    for part in folder.iterdir():
        if part.is_dir() and (part / "config.json").is_file() and part.name not in NOT_DRAWING:
            total += part_bytes(part, bytes_each)
    return total


def part_bytes(part: Path, bytes_each: int) -> int:
    """The same of one part's folder."""
    # The same weights may be there in several forms, as in half precision too.
    return max(_forms(part, bytes_each), default=0)


def _forms(part: Path, bytes_each: int) -> Iterator[int]:
    """The bytes of each form in which a part's weights are there."""
    forms: dict[str, int] = {}
    for file in part.iterdir():
        if file.suffix == ".safetensors":
            # `model.fp16-00001-of-00002.safetensors`: shards belong together, variants do not.
            form = file.name.partition("-0")[0].removesuffix(".safetensors")
            forms[form] = forms.get(form, 0) + numbers_in(file) * bytes_each
        elif file.suffix == GGUF:
            # Its weights stay quantized.
            forms[file.name] = file.stat().st_size
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
