"""Paints scenes, many at once, from sprites and backdrops that lie in the device's memory."""

import random
from functools import cache

import numpy as np
import torch
from PIL import Image

from training import machine
from training.scenes import SIZE, Scene, things
from training.vocabulary import BACKGROUNDS, COLOURS, PALE, RGB, SCENES

ONE, BIG = 96, 128  # pixels a side of an object alone, and of a huge one
HALF = 64  # of a tiny one, and of each of a pair
# An object alone stands up to this far off the middle, in both directions, so that two seeds differ: whole latents, so
# that what the U-Net has learnt in one place holds in the others.
SHIFT = 8
AT_ONCE = 1024


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


@cache
def _sprites(side: int) -> torch.Tensor:
    """Every object at one size, (objects, 4, side, side) uint8, alpha not multiplied in."""
    # Pillow weights the colours by alpha while it resizes "RGBA".
    images = [
        np.asarray(_cut_out(index).resize((side, side), Image.Resampling.LANCZOS))
        for index in range(len(things()))
    ]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def luma(rgb: torch.Tensor) -> torch.Tensor:
    """ITU-R BT.601 of (..., 3, height, width), one channel less."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=rgb.device)
    return torch.einsum("...chw,c->...hw", rgb, weights)


def tint(sprites: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """Paint objects in one colour each and keep their shading.

    Luma is first brought to a mean near one half by a gamma, then mapped from black over the colour to white. A tenth
    of the original colour stays, so that eyes and mouths can be told apart. Sprites (count, 4, side, side) and
    colours (count, 3) are 0 to 1.
    """
    rgb, alpha = sprites[:, :3], sprites[:, 3]
    light, solid = luma(rgb), alpha > 0.5
    mean = (light * solid).sum((1, 2)) / solid.sum((1, 2)).clamp_min(1)
    gamma = np.log(0.52) / mean.clamp(0.12, 0.93).log()
    level = (light.clamp(1e-3, 1) ** gamma[:, None, None])[:, None]
    paint = colours[:, :, None, None]
    lighter = paint + (1 - paint) * (2 * level - 1) * 0.85
    shaded = torch.where(level < 0.5, paint * 2 * level, lighter)
    return torch.cat([0.9 * shaded + 0.1 * rgb, sprites[:, 3:]], 1)


def _gradient(top: RGB, bottom: RGB, first: int = 0, last: int = SIZE) -> np.ndarray:
    t = np.clip((np.arange(SIZE) - first) / (last - first), 0, 1)[:, None, None]
    blend = np.array(top) * (1 - t) + np.array(bottom) * t
    return (blend * np.ones((1, SIZE, 1))).astype(np.float32)


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


class Painter:
    """Scenes, as `Scene.codes` gives them, to pictures."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sprites = {side: _sprites(side).to(device) for side in (HALF, ONE, BIG)}
        places = np.stack([place(name) for name in SCENES])
        self._places = torch.from_numpy(places).permute(0, 3, 1, 2).to(device)
        self._flat = self._table(list(BACKGROUNDS.values()))
        self._pale = self._table(list(PALE))
        self._paints = self._table(list(COLOURS.values())) / 255

    def _table(self, colours: list[RGB]) -> torch.Tensor:
        return torch.tensor(colours, dtype=torch.float32, device=self._device)

    def paint(self, codes: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
        """Pictures (count, 3, 128, 128) uint8 of scenes (count, 5); what a scene leaves open is left to `chance`."""
        parts = torch.split(codes.to(self._device).long(), AT_ONCE)
        return torch.cat([self._paint(part, chance) for part in parts])

    def _paint(self, codes: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
        first, second, behind, colour, size = codes.unbind(1)
        pictures = self._backdrops(behind, chance)
        two, alone = second > 0, (second == 0) & (size == 0)
        # Which scenes, what is drawn into them, its side, left and top in pixels, and how far it may be off.
        plan = [
            (two, first, HALF, 0, 32, 0),
            (two, second - 1, HALF, 64, 32, 0),
            (alone, first, ONE, 16, 16, SHIFT),
            (~two & (size == 1), first, HALF, 32, 32, SHIFT),
            (~two & (size == 2), first, BIG, 0, 0, 0),
        ]
        for which, objects, side, left, top, shift in plan:
            chosen = which.nonzero()[:, 0]
            sprites = self._objects(objects[chosen], colour[chosen], side)
            offset = self._random(chance, -1, 2, 2, len(chosen)) * shift
            x, y = left + offset[0], top + offset[1]
            pictures[chosen] = laid_over(pictures[chosen], sprites, x, y)
        return pictures.clamp(0, 255).round().byte()

    def _random(self, chance: torch.Generator, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=chance, device=self._device)

    def _backdrops(self, behind: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
        count = len(behind)
        shade = torch.rand(count, 3, generator=chance, device=self._device) * 12 - 6
        # White is the first of the named colours; it stays white.
        named = self._flat[(behind - 1).clamp(0, len(self._flat) - 1)]
        named = named + shade * (behind > 1)[:, None]
        pale = self._pale[self._random(chance, 0, len(self._pale), count)]
        flat = torch.where((behind == 0)[:, None], pale, named)
        pictures = flat[:, :, None, None].repeat(1, 1, SIZE, SIZE)
        outside = (behind > len(self._flat)).nonzero()[:, 0]
        pictures[outside] = self._places[behind[outside] - len(self._flat) - 1]
        return pictures

    def _objects(self, objects: torch.Tensor, colour: torch.Tensor, side: int) -> torch.Tensor:
        """Sprites (count, 4, side, side), 0 to 1."""
        sprites = self._sprites[side][objects].float() / 255
        painted = (colour > 0).nonzero()[:, 0]
        sprites[painted] = tint(sprites[painted], self._paints[colour[painted] - 1])
        return sprites


def laid_over(
    pictures: torch.Tensor, sprites: torch.Tensor, left: torch.Tensor, top: torch.Tensor
) -> torch.Tensor:
    """Pictures (count, 3, 128, 128), 0 to 255, with a sprite each laid over them at (left, top)."""
    count, _, side, _ = sprites.shape
    steps = torch.arange(side, device=pictures.device)
    rows, columns = top[:, None] + steps, left[:, None] + steps
    each = torch.arange(count, device=pictures.device)[:, None, None]
    rows, columns = rows[:, :, None], columns[:, None, :]
    area = pictures[each, :, rows, columns]  # (count, side, side, 3)
    sprites = sprites.permute(0, 2, 3, 1)
    alpha = sprites[..., 3:]
    pictures[each, :, rows, columns] = area * (1 - alpha) + sprites[..., :3] * alpha * 255
    return pictures


@cache
def painter() -> Painter:
    """The one on the machine's device."""
    return Painter(machine.device())


def pictures_of(scenes: list[Scene], seed: int) -> torch.Tensor:
    """The scenes painted, (count, 3, 128, 128) uint8."""
    codes = torch.tensor([scene.codes for scene in scenes])
    return painter().paint(codes, machine.generator(seed))
