"""What a model is named by: `embedded`, the path of a folder or of a single file, or an id of the hub."""

from __future__ import annotations

from pathlib import Path

# Of checkpoints in a single file.
SUFFIXES = (".safetensors", ".ckpt")


def is_single_file(model: str) -> bool:
    """Whether a model is named by the path of a checkpoint, there or not."""
    return model.endswith(SUFFIXES) and (
        Path(model).expanduser().is_file() or model.startswith((".", "/", "~"))
    )


def name_of(model: str) -> str:
    """What clients may know a model by: a hub id, or a folder's or file's name without the way to it."""
    if is_single_file(model):
        return Path(model).stem
    return Path(model).name if Path(model).expanduser().is_dir() else model
