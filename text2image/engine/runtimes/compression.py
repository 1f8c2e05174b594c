"""A converted network whose matrices are in int8, for OpenVINO.

Each output channel has a scale of its own, symmetric around 0. That is what NNCF's `compress_weights` does with its
mode INT8_SYM, which would bring eight packages along for it. Convolutions stay as they are: OpenVINO's CPU plugin
computes with matrices in int8, and would only unpack those when it compiles them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from text2image.core.settings import Settings
from text2image.engine.runtimes.openvino import DECODER, OUTER, UNET, NotConverted

# What is written changes with this.
_FORMAT = 1
# Matrices with fewer numbers are not worth a scale.
_LEAST_NUMBERS = 1 << 12
_MOST = 127


def compressed(folder: Path, settings: Settings) -> Path:
    """The folder of converted networks (`openvino.converted`) in int8; written now if that was never done.

    The decoder stays as it is.

    Raises:
        NotConverted: there is nowhere to write it.
    """
    kept = settings.cache_root / "openvino" / f"{folder.name}-int8-{_FORMAT}"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        # One process of several that start at once does it.
        with FileLock(kept.with_suffix(".lock")):
            if not (kept / DECODER).exists():
                _write(folder, kept)
    except OSError as error:
        raise NotConverted(str(error)) from error
    return kept


def _write(folder: Path, target: Path) -> None:
    import openvino

    core = openvino.Core()
    with tempfile.TemporaryDirectory(dir=target.parent) as around:
        parts = Path(around, "parts")
        parts.mkdir()
        for name in (UNET, OUTER):
            if (folder / name).exists():
                model = core.read_model(folder / name)
                compress(model)
                openvino.save_model(model, parts / name, compress_to_fp16=False)
        for file in (folder / DECODER, (folder / DECODER).with_suffix(".bin")):
            shutil.copy(file, parts)
        parts.rename(target)


def compress(model: Any) -> None:
    """Puts the matrices of an OpenVINO model in int8, in place."""
    import openvino
    from openvino import opset13

    for constant in model.get_ordered_ops():
        if constant.get_type_name() != "Constant":
            continue
        if constant.get_element_type() != openvino.Type.f32:
            continue
        readers = constant.output(0).get_target_inputs()
        axes = [_channels(each) for each in readers]
        weights, axis = constant.data, axes[0] if axes else None
        # Tied weights that are read along different axes have no scales that suit both.
        if axis is None or set(axes) != {axis} or weights.size < _LEAST_NUMBERS:
            continue
        numbers, scales = _quantized(weights, axis)
        whole = opset13.multiply(opset13.convert(opset13.constant(numbers), "f32"), scales)
        for each in readers:
            each.replace_source_output(whole.output(0))


def _channels(reader: Any) -> int | None:
    """The axis of the output channels in weights that a product reads here; None for any other input."""
    node = reader.get_node()
    if node.get_type_name() != "MatMul" or reader.get_index() != 1 or len(reader.get_shape()) != 2:
        return None
    return 0 if node.get_attributes()["transpose_b"] else 1


def _quantized(weights: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of -127 to 127, and what they are multiplied by, of a matrix whose output channels are along an axis."""
    most = np.abs(weights).max(axis=1 - axis, keepdims=True)
    scales = np.where(most > 0, most / _MOST, 1).astype(np.float32)
    return np.round(weights / scales).astype(np.int8), scales
