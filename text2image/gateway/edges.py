"""Edges of a picture as nets for them were trained on: Canny's (1986), as OpenCV finds them."""

from __future__ import annotations

from PIL import Image

from text2image.core.errors import FieldViolation, InvalidRequest

# As in the original ControlNet's demonstration and diffusers' documentation.
_LOW, _HIGH = 100, 200


def edges(image: Image.Image) -> Image.Image:
    """White edges on black, of an RGB picture. Takes a while: call it in a thread.

    Raises:
        InvalidRequest: the server has no OpenCV.
    """
    try:
        # Here, since few servers have it, and a command need not wait for it.
        import cv2
        import numpy as np
    except ImportError:
        reason = (
            "ask for edges, which this server cannot find without the extra canny "
            "(pip install -r requirements/canny.txt); send a picture of them"
        )
        raise InvalidRequest(FieldViolation("controls", reason)) from None
    found = cv2.Canny(np.asarray(image), _LOW, _HIGH)
    return Image.fromarray(found).convert("RGB")
