"""Transformers in a GGUF file, as they are published quantized: their headers, and a pipeline's folder around one.

The file holds the transformer alone, under the names of the original training code or of diffusers; text encoders and
autoencoder come from the folder of the whole pipeline. diffusers reads it with the package `gguf`, which is an extra.
"""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from text2image.engine.layouts.folder import (
    GGUF,
    INDEX,
    made_whole,
    parts_of,
    read_json,
    weights_of,
)
from text2image.engine.layouts.headers import Header, Stored, Unreadable

PART = "transformer"
_MAGIC = b"GGUF"


def gguf_parts(folder: Path) -> dict[str, Path]:
    """By the name of a pipeline's part, the GGUF file that its weights are read from; most pipelines have none.

    Raises:
        OSError, ValueError: model_index.json, or an index of shards, cannot be read.
    """
    found = {}
    for name in parts_of(read_json(folder / INDEX)):
        files = weights_of(folder / name) if (folder / name).is_dir() else []
        if files and files[0].suffix == GGUF:
            found[name] = files[0]
    return found


def read_gguf(path: Path) -> Header:
    """The tensors of a GGUF file as they are once they are dequantized; their `dtype` is as GGUF writes it: Q4_K, F16.

    Raises:
        OSError: the file is not there, or may not be read.
        Unreadable: it is no GGUF file, is damaged, or has weights in a form that diffusers does not read.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise Unreadable("is no GGUF file")
    tensors = _tensors(path)
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES, UNQUANTIZED_TYPES

    read = {each.name for each in {*SUPPORTED_GGUF_QUANT_TYPES, *UNQUANTIZED_TYPES}}
    odd = sorted({each.tensor_type.name for each in tensors} - read)
    if odd:
        raise Unreadable(f"is quantized as {', '.join(odd)}; read are {', '.join(sorted(read))}")
    if not tensors:
        raise Unreadable("holds no tensors")
    # The format counts dimensions from the innermost one.
    shapes = {each.name: tuple(int(size) for size in reversed(each.shape)) for each in tensors}
    return Header(
        {each.name: Stored(each.tensor_type.name, shapes[each.name]) for each in tensors}, {}
    )


def _tensors(path: Path) -> list[Any]:
    if find_spec("gguf") is None:
        raise Unreadable('needs the extra "gguf": pip install -r requirements/gguf.txt')
    from gguf import GGUFReader

    try:
        return list(GGUFReader(path).tensors)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Unreadable(f"is damaged ({reason}); fetch it again") from None


def lay_around(path: Path, folder: Path, root: Path) -> Path:
    """A pipeline's folder with the weights of its transformer replaced by a GGUF file; made of links, once.

    Args:
        folder: the pipeline's own, of whose transformer the configuration is enough.
        root: the folder of such folders.

    Raises:
        OSError: the file or the configuration is not there, or the folder cannot be written.
        ValueError: the pipeline has no transformer.
    """
    if PART not in parts_of(read_json(folder / INDEX)):
        raise ValueError(f"the pipeline has no {PART}, whose weights could be in {path.name}")
    config, found = folder / PART / "config.json", path.resolve(strict=True)
    # Read now, so that what is missing is told by its name.
    identity = [str(found), found.stat().st_size, found.stat().st_mtime_ns, config.read_text()]
    identity += [str(folder.resolve()), *sorted(each.name for each in folder.iterdir())]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    target = root / f"{path.stem}-{digest}"
    if (target / INDEX).exists():
        return target
    with made_whole(target) as made:
        (made / PART).mkdir()
        for each in folder.iterdir():
            if each.name != PART:
                (made / each.name).symlink_to(each.resolve())
        (made / PART / "config.json").symlink_to(config.resolve())
        (made / PART / found.name).symlink_to(found)
    return target
