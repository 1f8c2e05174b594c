"""The 300 prompts that a model is measured on, and the ones on the contact sheet."""

import random
from dataclasses import dataclass

from training.captions import NO_ARTICLE as PLAIN_NOUNS
from training.captions import is_plural, with_article
from training.scenes import Scene, held_out, things
from training.vocabulary import BACKGROUNDS, COLOURS, listed

SETS = {
    "plain object": 70,
    "object + background, seen pairs": 50,
    "object + background, held-out pairs": 40,
    "object colour, seen pairs": 50,
    "object colour, held-out pairs": 30,
    "two objects": 60,
}
SHEET = listed(
    "a cat|a photo of a dog|a red apple|a pizza|a house|a robot|a rocket|a tree|"
    "a butterfly|a sunflower|a castle|an elephant|a guitar|a ghost|a smiley face|a crown|"
    "a cat on a blue background|a dog on a green background|a strawberry on a yellow background|"
    "a penguin on a pink background|a skull on a black background|a star on a gray background|"
    "a hamburger on a blue background|a cactus on a brown background|"
    "a purple cat|a blue elephant|a green heart|a pink car|a yellow dragon|a blue apple|a black horse|"
    "an orange house|a red robot on a yellow background|a white bear on a blue background|"
    "a brown guitar|a green penguin|"
    "a cat and a dog|an apple and a banana|a robot next to a rocket|a house and a tree|two dogs|"
    "a fox and an owl on a green background|a sun and a moon|pizza, donut|"
    "a tiny cat|a huge cookie on a blue background|a rocket in space|a turtle underwater|"
    "a horse on the grass|a penguin in the snow|a ship at sunset|a crab on the beach|"
    "kitten|a beautiful lion, highly detailed, 4k|Draw a whale, please!|fluffy majestic panda|"
    "an astronaut riding a horse|a knight with a sword|a microphone|broccoli|a violin|an ufo|"
    "a backpack|a wizard"
)


@dataclass(frozen=True)
class Question:
    """A prompt and the scene that it asks for."""

    set: str
    prompt: str
    scene: Scene


def _noun(index: int, adjective: str = "") -> str:
    name = things()[index].names[0]
    words = f"{adjective} {name}".strip()
    return words if name in PLAIN_NOUNS or is_plural(name) else with_article(words)


def _question(kind: str, rng: random.Random) -> Question:
    index = rng.randrange(len(things()))
    kept_back = "held-out" in kind
    if "background" in kind:
        fitting = [
            b for b in BACKGROUNDS if b != "white" and held_out("background", index, b) == kept_back
        ]
        if not fitting:
            return _question(kind, rng)
        word = rng.choice(fitting)
        prompt = f"{_noun(index)} on {with_article(word)} background"
        return Question(kind, prompt, Scene((index,), word))
    if "colour" in kind:
        fitting = [c for c in COLOURS if held_out("colour", index, c) == kept_back]
        if not fitting:
            return _question(kind, rng)
        word = rng.choice(fitting)
        return Question(kind, _noun(index, word), Scene((index,), colour=word))
    if kind == "two objects":
        other = (index + rng.randrange(1, len(things()))) % len(things())
        return Question(kind, f"{_noun(index)} and {_noun(other)}", Scene((index, other)))
    return Question(kind, _noun(index), Scene((index,)))


def questions() -> list[Question]:
    """The same 300 questions every time."""
    rng = random.Random(2024)
    return [_question(kind, rng) for kind, count in SETS.items() for _ in range(count)]
