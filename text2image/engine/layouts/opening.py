"""Loads the parts of a pipeline from wherever they lie. Families open theirs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from text2image.engine.layouts.folder import (
    INDEX,
    checkpoint_of,
    parts_of,
    read_json,
    variant_of,
)
from text2image.engine.layouts.gguf_file import gguf_parts
from text2image.engine.samplers.registry import own_sampler, scheduler_for


def open_pipeline(kind: Any, folder: Path, dtype: torch.dtype, **parts: Any) -> Any:
    """A pipeline of a class of diffusers.

    Args:
        folder: in diffusers' format; see `folder.py`.
        parts: given in place of the folder's own, or None for those that are not loaded; and options of the class.

    Raises:
        OSError, ValueError: a part is missing or cannot be read.
    """
    index = read_json(folder / INDEX)
    scheduler = _stand_in(folder) if "scheduler" in index else None
    if scheduler is not None:
        parts["scheduler"] = None
    if checkpoint := checkpoint_of(folder):
        pipeline = kind.from_single_file(
            str(checkpoint), config=str(folder), dtype=dtype, local_files_only=True, **parts
        )
    else:
        variant = variant_of(folder, index)
        for name, path in gguf_parts(folder).items():
            if name not in parts:
                kind_of_part = getattr(diffusers, parts_of(index)[name][1])
                parts[name] = _from_gguf(kind_of_part, path, dtype)
        pipeline = kind.from_pretrained(
            folder, dtype=dtype, variant=variant, local_files_only=True, **parts
        )
    if scheduler is not None:
        pipeline.register_modules(scheduler=scheduler)
    return pipeline


def _from_gguf(kind: Any, path: Path, dtype: torch.dtype) -> Any:
    """A network whose weights stay quantized, and are dequantized to `dtype` layer by layer as it computes."""
    return kind.from_single_file(
        str(path),
        config=str(path.parent),
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
        dtype=dtype,
        local_files_only=True,
    )


def open_part(folder: Path, name: str, dtype: torch.dtype) -> Any:
    """One part of a pipeline that is a network of diffusers; the folder as `open_pipeline` takes it.

    Raises:
        OSError, ValueError: it is missing or cannot be read.
    """
    index = read_json(folder / INDEX)
    kind = getattr(diffusers, index[name][1])
    if checkpoint := checkpoint_of(folder):
        return kind.from_single_file(
            str(checkpoint),
            config=str(folder),
            subfolder=name,
            torch_dtype=dtype,
            local_files_only=True,
        )
    return kind.from_pretrained(
        folder,
        subfolder=name,
        torch_dtype=dtype,
        variant=variant_of(folder, index),
        local_files_only=True,
    )


def _stand_in(folder: Path) -> Any:
    """A scheduler of the same configuration, where diffusers' own class needs a package that is not here; else None.

    A model's scheduler is asked for its configuration alone: its steps are tables made from that.
    """
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    sampler = own_sampler(config)
    needs_more = config.get("use_beta_sigmas") or not is_usable(config)
    return scheduler_for(sampler, config, None) if sampler and needs_more else None


def is_usable(config: dict[str, Any]) -> bool:
    """Whether diffusers has the class of a scheduler's configuration, with all that this needs."""
    found = getattr(diffusers, str(config.get("_class_name")), None)
    # What stands in for a class whose packages are missing names them.
    return found is not None and not hasattr(found, "_backends")
