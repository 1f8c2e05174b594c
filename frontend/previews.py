"""What a drawing looks like before it is finished."""

from __future__ import annotations

import io

from PIL import Image

from text2image.core.messages import Pixels

# Previews are blurred anyway: no side is longer than this.
_MAX_SIDE = 256
_BLANK = (128, 128, 128, 48)


def png_of(preview: Pixels | None, width: int, height: int) -> bytes:
    """A preview as a PNG with the proportions of its picture; without one, an empty sheet."""
    scale = min(1.0, _MAX_SIDE / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if preview is None:
        image = Image.new("RGBA", size, _BLANK)
    else:
        small = Image.frombytes("RGB", (preview.width, preview.height), preview.rgb)
        image = small.resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
