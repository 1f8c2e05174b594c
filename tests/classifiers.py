"""A classifier of an operator's own, whose judgement is known beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
from openvino import opset13 as ops


def brightness(file: Path, shape: list[int]) -> Path:
    """A classifier of an operator's own, to whom the lighter a picture is the worse it is."""
    picture = ops.parameter(shape, np.float32)
    mean = ops.reduce_mean(picture, np.array([1, 2, 3]), keep_dims=False)
    openvino.save_model(openvino.Model([mean], [picture]), file)
    return file
