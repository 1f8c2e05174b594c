"""What a training picture holds; `painter.py` paints it."""

import random
import zlib
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from training.artwork import Thing, catalogue
from training.vocabulary import BACKGROUNDS, COLOURS, SCENES, SIZES

BEHIND = (*BACKGROUNDS, *SCENES)

SIZE = 128
# The harder to learn, the more of them: colours and pairs have by far the most combinations.
KINDS = {"plain": 10, "background": 16, "scene": 6, "colour": 30, "pair": 34, "sized": 4}
# Colours look the same on every object, so one object in ten can be kept back for each to test whether
# the model combines what it knows.
HELD_OUT_ONE_IN = 10
_PAINTS, _SIZES = tuple(COLOURS), tuple(SIZES)


@dataclass(frozen=True)
class Scene:
    """The content of one picture. `background` is a colour, a place, or None for any pale one."""

    objects: tuple[int, ...]
    background: str | None = None
    colour: str | None = None
    size: str | None = None

    @property
    def codes(self) -> tuple[int, int, int, int, int]:
        """First object, second object, background, colour and size as numbers; 0 is "none" in the last four."""
        return (
            self.objects[0],
            self.objects[1] + 1 if len(self.objects) > 1 else 0,
            BEHIND.index(self.background) + 1 if self.background else 0,
            _PAINTS.index(self.colour) + 1 if self.colour else 0,
            _SIZES.index(self.size) + 1 if self.size else 0,
        )


@cache
def things() -> list[Thing]:
    """The objects; their index is their identity throughout."""
    return catalogue()


@cache
def _weights() -> list[int]:
    """Cumulative: what people ask for often counts twice."""
    return list(accumulate(2 if thing.popular else 1 for thing in things()))


@cache
def held_out(kind: str, index: int, word: str) -> bool:
    """Whether this (object, background) or (object, colour) is never trained on."""
    if kind == "background" and word == "white":
        return False
    key = f"{kind}/{things()[index].names[0]}/{word}".encode()
    return zlib.crc32(key) % HELD_OUT_ONE_IN == 0


def _any_object(rng: random.Random) -> int:
    return rng.choices(range(len(things())), cum_weights=_weights())[0]


def _any_background(
    rng: random.Random, objects: tuple[int, ...], every: bool, but: str | None = None
) -> str:
    allowed = [
        name
        for name in BACKGROUNDS
        if name != but and (every or not any(held_out("background", o, name) for o in objects))
    ]
    return rng.choice(allowed)


def draw_scene(rng: random.Random, kind: str | None = None, held_out_too: bool = False) -> Scene:
    """A random scene of the training distribution, or of everything that may be asked for."""
    kind = kind or rng.choices(list(KINDS), list(KINDS.values()))[0]
    one = (_any_object(rng),)
    if kind == "background":
        return Scene(one, _any_background(rng, one, held_out_too))
    if kind == "scene":
        return Scene(one, rng.choice(list(SCENES)))
    if kind == "colour":
        colours = [c for c in COLOURS if held_out_too or not held_out("colour", one[0], c)]
        colour = rng.choice(colours)
        behind = rng.random() < 0.4
        background = _any_background(rng, one, held_out_too, but=colour) if behind else None
        return Scene(one, background, colour=colour)
    if kind == "sized":
        background = _any_background(rng, one, held_out_too) if rng.random() < 0.5 else None
        return Scene(one, background, size=rng.choice(["tiny", "huge"]))
    if kind == "pair":
        two = (one[0], one[0] if rng.random() < 0.1 else _any_object(rng))
        background = _any_background(rng, two, held_out_too) if rng.random() < 0.4 else None
        return Scene(two, background)
    return Scene(one)
