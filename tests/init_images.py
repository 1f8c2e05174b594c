"""Pictures to begin from and to be steered by, as pixels and as files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from text2image.core.init_image import InitImage

SIZE = WIDTH, HEIGHT = 128, 96


def picture(size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    """Soft colours, the same for the same seed."""
    spots = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


def hole(size: tuple[int, int] = SIZE) -> Image.Image:
    """A mask, white in the middle."""
    width, height = size
    mask = Image.new("L", size)
    mask.paste(255, (width // 4, height // 4, width * 3 // 4, height * 3 // 4))
    return mask


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def init_image(size: tuple[int, int] = SIZE, *, masked: bool = False, seed: int = 0) -> InitImage:
    """A picture as the engine takes it."""
    mask = hole(size).tobytes() if masked else None
    return InitImage.of(*size, picture(size, seed).tobytes(), mask)


def pixels(image: InitImage) -> np.ndarray:
    """(height, width, 3)"""
    return np.frombuffer(image.rgb, np.uint8).reshape(image.height, image.width, 3)


def marked(image: InitImage) -> np.ndarray:
    """(height, width), 255 where it is drawn anew."""
    assert image.mask is not None
    return np.frombuffer(image.mask, np.uint8).reshape(image.height, image.width)


def shapes(size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    """A few rectangles on black, the same for the same seed."""
    random, (width, height) = np.random.default_rng(seed), size
    image = Image.new("RGB", size)
    for _ in range(4):
        left, top = int(random.integers(0, width // 2)), int(random.integers(0, height // 2))
        colour = tuple(int(each) for each in random.integers(0, 255, 3))
        image.paste(colour, (left, top, left + width // 2, top + height // 2))
    return image


def control_picture(size: tuple[int, int] = SIZE, seed: int = 0) -> InitImage:
    """The same as the engine takes it."""
    return InitImage.of(*size, shapes(size, seed).tobytes())
