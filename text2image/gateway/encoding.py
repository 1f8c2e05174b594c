"""Pictures in other forms than PNG, with the same parameters inside, and previews as large as their pictures."""

from __future__ import annotations

import io

from PIL import Image

from text2image.core.formats import Encoding, FileFormat
from text2image.core.messages import Pixels
from text2image.gateway import metadata

# From here on JPEG keeps its colours in every pixel, since whoever asks for so much means to see no difference.
_FULL_COLOUR = 90


def convert(png: bytes, encoding: Encoding) -> bytes:
    """The file of a picture in another form, made from its PNG, the parameters of which it takes along."""
    if encoding.format is FileFormat.PNG:
        return png
    with Image.open(io.BytesIO(png)) as image:
        return _written(image, encoding, metadata.exif(metadata.read(png)))


def preview(pixels: Pixels, width: int, height: int, encoding: Encoding) -> bytes:
    """The file of a preview, enlarged to the size of its picture in pixels; it carries no parameters."""
    image = Image.frombytes("RGB", (pixels.width, pixels.height), pixels.rgb)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return _written(image, encoding)


def _written(image: Image.Image, encoding: Encoding, exif: bytes = b"") -> bytes:
    file = io.BytesIO()
    match encoding.format:
        case FileFormat.PNG:
            image.save(file, "PNG", compress_level=metadata.COMPRESS_LEVEL)
        case FileFormat.JPEG:
            subsampling = 0 if encoding.quality >= _FULL_COLOUR else 2
            image.save(file, "JPEG", quality=encoding.quality, subsampling=subsampling, exif=exif)
        case FileFormat.WEBP:
            image.save(file, "WEBP", quality=encoding.quality, exif=exif)
    return file.getvalue()
