"""A pipeline's folder in diffusers' format: its parts, and the files that their weights are read from.

    model_index.json                              the pipeline's class, and its parts' libraries and classes
    unet/config.json
    unet/diffusion_pytorch_model.safetensors      or `.fp16.safetensors`, a variant
    text_encoder/model.safetensors.index.json     or shards, which an index lists
    transformer/flux1-dev-Q4_K.gguf               or quantized, as `gguf_file.py` reads it
    checkpoint.safetensors                        or all parts' weights in one file, as `single_file.py` lays it here

Files, folders and shards may be links, as they are in the hub's cache. No torch is needed here.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
# A checkpoint with all parts' weights, by the names of its own time.
CHECKPOINTS = ("checkpoint.safetensors", "checkpoint.ckpt")
GGUF = ".gguf"
WEIGHTS = frozenset({".safetensors", ".bin", ".ckpt", GGUF})
# Parts of a published pipeline that are neither fetched nor loaded with what draws: a fifth of the download. Two of them
# are the safety checker's; see `safety_checker.py`.
NOT_DRAWING = ("safety_checker", "feature_extractor", "image_encoder")
# Classes of parts that have no weights, by the end of their name.
_WEIGHTLESS = (
    "Scheduler",
    "Tokenizer",
    "TokenizerFast",
    "Processor",
    "FeatureExtractor",
    "Guidance",
)
# Names of weights in diffusers and in transformers, safe ones first.
_STEMS = (
    ("diffusion_pytorch_model", ".safetensors"),
    ("model", ".safetensors"),
    ("diffusion_pytorch_model", ".bin"),
    ("pytorch_model", ".bin"),
)
_PLAIN = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)
_VARIANT = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)\.([a-z0-9_]+)(?:-\d+-of-\d+)?\.(?:safetensors|bin)"
)
# Variants that are the same model in other precision; `ema` and `non_ema` are other weights.
_PRECISIONS = ("fp16", "bf16", "fp32")


def files_of(folder: Path) -> Iterator[Path]:
    """All files under a folder in a fixed order, those behind links too; dead links are files here."""
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        # A link to a folder around itself would go on for ever.
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(place, name) for name in sorted(files))


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        OSError: the file is not there, or may not be read.
        ValueError: it holds no JSON object.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("holds no JSON object")
    return content


def parts_of(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """A pipeline's parts that draw: by name, the library and the class of each."""
    return {
        name: (str(value[0]), str(value[1]))
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] and value[1]
        if name not in NOT_DRAWING
    }


def has_weights(kind: str) -> bool:
    """Whether a part of this class has weights of its own."""
    return not kind.endswith(_WEIGHTLESS)


def checkpoint_of(folder: Path) -> Path | None:
    """The single file that holds the weights of all parts; None where each has its own."""
    found = (folder / name for name in CHECKPOINTS)
    return next((path for path in found if os.path.lexists(path)), None)


def shard_index(part: Path, variant: str | None = None) -> Path | None:
    """The file that says which shard a parameter is in; None where a part's weights are not sharded."""
    dot = f".{variant}" if variant else ""
    found = (part / f"{stem}{suffix}.index{dot}.json" for stem, suffix in _STEMS)
    return next((path for path in found if path.is_file()), None)


def weights_of(part: Path, variant: str | None = None) -> list[Path]:
    """The files that a part's weights are read from, there or not; none where it has none of this variant.

    A GGUF file, which may have any name, is one where there is no other.

    Args:
        part: the part's folder.

    Raises:
        ValueError: the index of its shards is no such thing.
    """
    if index := shard_index(part, variant):
        return sorted({part / name for name in weight_map(index).values()})
    dot = f".{variant}" if variant else ""
    found = (part / f"{stem}{dot}{suffix}" for stem, suffix in _STEMS)
    plain = [path for path in found if os.path.lexists(path)][:1]
    return plain or ([] if variant else sorted(part.glob(f"*{GGUF}"))[:1])


def weight_map(index: Path) -> dict[str, str]:
    """By parameter the name of the shard that it is in.

    Raises:
        ValueError: the file is no such index.
    """
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError("names no shards (weight_map)")
    return {str(name): str(shard) for name, shard in shards.items()}


def variant_of(folder: Path, index: dict[str, Any]) -> str | None:
    """The variant to load a pipeline by: where some part has no plain weights, the one that is there instead."""
    parts = (folder / name for name, (_, kind) in parts_of(index).items() if has_weights(kind))
    return variant_among([path.name for path in part.iterdir()] for part in parts if part.is_dir())


def variant_among(parts: Iterable[Iterable[str]]) -> str | None:
    """The same, of the names of the files in each part's folder."""
    for names in map(set, parts):
        if any(map(_PLAIN.fullmatch, names)):
            continue
        there = {match[1] for name in names if (match := _VARIANT.fullmatch(name))}
        if fitting := there.intersection(_PRECISIONS):
            return min(fitting, key=_PRECISIONS.index)
    return None


@contextmanager
def made_whole(target: Path) -> Iterator[Path]:
    """A folder to be filled, which is `target` afterwards, unless another process has made that meanwhile.

    Raises:
        OSError: it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as around:
        made = Path(around, "folder")
        made.mkdir()
        yield made
        try:
            made.rename(target)
        except OSError:
            # Another process was faster.
            if not (target / INDEX).is_file():
                raise
