"""What a training picture holds (`Scene`) and how it is painted.

Every object stands in one place, in one of three sizes and in no mirror image. Each of these choices would be one
more that the U-Net has to make out of the noise before it can draw, and takes far longer to learn than it looks.
"""

import random
import zlib
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image

from training.artwork import Thing, catalogue
from training.vocabulary import BACKGROUNDS, COLOURS, PALE, RGB, SCENES

SIZE = 128
# The harder to learn, the more of them: colours and pairs have by far the most combinations.
KINDS = {"plain": 10, "background": 16, "scene": 6, "colour": 30, "pair": 34, "sized": 4}
# Colours look the same on every object, so one object in ten can be kept back for each to test whether
# the model combines what it knows.
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True)
class Scene:
    """The content of one picture. `background` is a colour, a place, or None for any pale one."""

    objects: tuple[int, ...]
    background: str | None = None
    colour: str | None = None
    size: str | None = None


@cache
def things() -> list[Thing]:
    """The objects; their index is their identity throughout."""
    return catalogue()


@cache
def _weights() -> list[int]:
    return [2 if thing.popular else 1 for thing in things()]


def held_out(kind: str, index: int, word: str) -> bool:
    """Whether this (object, background) or (object, colour) is never trained on."""
    if kind == "background" and word == "white":
        return False
    key = f"{kind}/{things()[index].names[0]}/{word}".encode()
    return zlib.crc32(key) % HELD_OUT_ONE_IN == 0


def _any_object(rng: random.Random) -> int:
    return rng.choices(range(len(things())), _weights())[0]


def _any_background(rng: random.Random, objects: tuple[int, ...], but: str | None = None) -> str:
    allowed = [
        name
        for name in BACKGROUNDS
        if name != but and not any(held_out("background", o, name) for o in objects)
    ]
    return rng.choice(allowed)


def draw_scene(rng: random.Random, kind: str | None = None) -> Scene:
    """A random scene of the training distribution."""
    kind = kind or rng.choices(list(KINDS), list(KINDS.values()))[0]
    one = (_any_object(rng),)
    if kind == "background":
        return Scene(one, _any_background(rng, one))
    if kind == "scene":
        return Scene(one, rng.choice(list(SCENES)))
    if kind == "colour":
        colour = rng.choice([c for c in COLOURS if not held_out("colour", one[0], c)])
        background = _any_background(rng, one, but=colour) if rng.random() < 0.4 else None
        return Scene(one, background, colour=colour)
    if kind == "sized":
        background = _any_background(rng, one) if rng.random() < 0.5 else None
        return Scene(one, background, size=rng.choice(["tiny", "huge"]))
    if kind == "pair":
        two = (one[0], one[0] if rng.random() < 0.1 else _any_object(rng))
        return Scene(two, _any_background(rng, two) if rng.random() < 0.4 else None)
    return Scene(one)


@cache
def _cut_out(index: int) -> Image.Image:
    """The object cropped to its outline and padded to a square, RGBA."""
    image = Image.open(things()[index].file).convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 25)).getbbox()
    crop = image.crop(box)
    side = max(crop.size)
    square = Image.new("RGBA", (side, side))
    square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
    return square


def tint(pixels: np.ndarray, colour: RGB) -> np.ndarray:
    """Paint an object in one colour and keep its shading.

    Luma (ITU-R BT.601) is first brought to a mean near one half by a gamma, then mapped from black over
    the colour to white. A tenth of the original colour stays, so that eyes and mouths can be told apart.
    """
    luma = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    solid = pixels[..., 3] > 0.5
    mean = float(np.clip(luma[solid].mean() if solid.any() else 0.5, 0.12, 0.93))
    level = np.clip(luma, 1e-3, 1)[..., None] ** (np.log(0.52) / np.log(mean))
    paint = np.array(colour, np.float32) / 255
    shaded = np.where(level < 0.5, paint * 2 * level, paint + (1 - paint) * (2 * level - 1) * 0.85)
    return np.concatenate([0.9 * shaded + 0.1 * pixels[..., :3], pixels[..., 3:]], -1)


@lru_cache(maxsize=2048)
def _sprite(index: int, colour: str | None, side: int) -> np.ndarray:
    """The object at its final size, alpha premultiplied: (side, side, 4), 0 to 255."""
    # Pillow weights the colours by alpha while it resizes "RGBA".
    image = _cut_out(index).resize((side, side), Image.Resampling.LANCZOS)
    pixels = np.asarray(image, np.float32) / 255
    if colour:
        pixels = tint(pixels, COLOURS[colour])
    return np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1) * 255


def _gradient(top: RGB, bottom: RGB, first: int = 0, last: int = SIZE) -> np.ndarray:
    t = np.clip((np.arange(SIZE) - first) / (last - first), 0, 1)[:, None, None]
    blend = np.array(top) * (1 - t) + np.array(bottom) * t
    return (blend * np.ones((1, SIZE, 1))).astype(np.float32)


@cache
def place(name: str) -> np.ndarray:
    """The backdrop of a named place, (128, 128, 3), 0 to 255."""
    if name == "space":
        sky = _gradient((14, 12, 40), (40, 22, 70))
        stars = random.Random(5)
        for _ in range(34):
            y, x, r = stars.randrange(SIZE - 3), stars.randrange(SIZE - 3), stars.choice([1, 2])
            sky[y : y + r, x : x + r] = (255, 250, 230)
        return sky
    if name == "underwater":
        return _gradient((70, 190, 230), (10, 50, 120))
    outdoors: dict[str, tuple[RGB, RGB, RGB, RGB, int]] = {
        "grass": ((120, 190, 250), (200, 230, 255), (110, 200, 80), (60, 150, 50), 84),
        "beach": ((110, 190, 250), (190, 230, 255), (250, 225, 160), (235, 195, 120), 84),
        "snow": ((170, 200, 230), (215, 230, 245), (255, 255, 255), (225, 235, 250), 84),
        "sunset": ((90, 50, 130), (250, 150, 70), (250, 170, 80), (255, 210, 110), 90),
    }
    zenith, haze, ground, foreground, horizon = outdoors[name]
    picture = _gradient(zenith, haze, 0, horizon)
    picture[horizon:] = _gradient(ground, foreground, horizon, SIZE)[horizon:]
    if name == "beach":
        picture[64:84] = _gradient((40, 140, 210), (70, 180, 220), 64, 84)[64:84]
    return picture


def _layout(scene: Scene) -> list[tuple[int, int, int]]:
    """Where each object goes: (left, top, side) in pixels."""
    if len(scene.objects) == 2:
        return [(0, 32, 64), (64, 32, 64)]
    if scene.size == "tiny":
        return [(32, 32, 64)]
    if scene.size == "huge":
        return [(0, 0, 128)]
    return [(16, 16, 96)]


def paint(scene: Scene, rng: random.Random) -> np.ndarray:
    """Paint a scene, with the shade of the background left to `rng`.

    Returns (128, 128, 3) uint8.
    """
    if scene.background in SCENES:
        picture = place(scene.background).copy()
    else:
        named = scene.background is not None
        base = BACKGROUNDS[scene.background] if scene.background else rng.choice(PALE)
        shift = [rng.uniform(-6, 6) if named and scene.background != "white" else 0 for _ in "rgb"]
        picture = np.ones((SIZE, SIZE, 3), np.float32) * (np.array(base) + np.array(shift))
    for index, (left, top, side) in zip(scene.objects, _layout(scene), strict=True):
        sprite = _sprite(index, scene.colour, side)
        area = picture[top : top + side, left : left + side]
        area *= 1 - sprite[..., 3:] / 255
        area += sprite[..., :3]
    return picture.clip(0, 255).astype(np.uint8)
