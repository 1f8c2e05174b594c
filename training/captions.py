"""What people type for a scene: articles, synonyms, fillers, and the words for colours and places."""

import json
import random
import re
from functools import cache

from training.artwork import COLOUR_WORDS, fetch
from training.scenes import Scene, things
from training.vocabulary import SCENES, SIZES, listed, synonyms

# Said without "a": plurals, substances, and names.
NO_ARTICLE = set(
    listed(
        "french fries|money|fire|flame|corn|maize|bread|spaghetti|pasta|popcorn|sushi|cheese|meat|milk|beer|coffee|"
        "tea|wine|red wine|ramen|noodles|honey|lightning|mail|poop|poo|earth|planet earth|santa|"
        "santa claus|garlic|broccoli|chocolate|rain|confetti|camping|planet earth|soda|thumbs up|"
        "cash|piano keys|money bag"
    )
)
LEADS = listed(
    "a photo of|a picture of|an image of|an emoji of|a drawing of|an illustration of|a painting of|"
    "a 3d render of|an icon of|photo of|picture of|draw|a photograph of|a cartoon of|show me|"
    "generate|a sticker of|i want|make|a close up of|a portrait of|please draw|create an image of"
)

ADJECTIVES = listed(
    "cute|cute|beautiful|nice|lovely|shiny|cartoon|3d|funny|pretty|happy|realistic|simple|"
    "single|old|new|young|baby|adorable|glossy|magic"
)

TAILS = listed(
    ", highly detailed|, 4k|, digital art|, high quality|, cartoon style|, 3d render|, masterpiece|"
    ", trending on artstation|, studio lighting|, best quality|, emoji|, vector art| emoji|, 8k|"
    ", cinematic|, please|!|.| icon|, isolated|, soft light"
)

BEHIND = listed(
    " on a {} background| on a {} background| on a {} background| with a {} background|"
    ", {} background| {} background| in front of a {} background| against a {} backdrop|"
    " on a solid {} background| in front of a {} wall| on a plain {} background| on {}|"
    " in a {} room"
)

BOTH = listed(
    "{} and {}|{} and {}|{} and {}|{} next to {}|{} beside {}|{} with {}|"
    "{} on the left and {} on the right|{} + {}|{}, {}|{} left of {}"
)

IRREGULAR = {"mouse": "mice", "sheep": "sheep", "fish": "fish", "man": "men", "woman": "women"}


def with_article(words: str) -> str:
    """ "a" or "an" before the words."""
    return ("an " if words[0] in "aeiou" and not words.startswith("uni") else "a ") + words


def is_plural(noun: str) -> bool:
    """Whether a name is a plural already."""
    return noun.endswith("s") and not noun.endswith(("ss", "us", "os"))


def plural(noun: str) -> str:
    """The plural of an English noun, well enough for captions."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if is_plural(noun):
        return noun
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


@cache
def unknown_words() -> list[str]:
    """Words that name nothing the model draws; met in training, they are learnt to be passed over."""
    listed = json.loads((fetch("keywords") / "dist" / "emoji-en-US.json").read_text())
    words = {w for found in listed.values() for k in found for w in re.findall(r"[a-z]{3,}", k)}
    known = {w for t in things() for n in (*t.names, *t.keywords) for w in n.split()}
    return sorted(words - known - COLOUR_WORDS)


def _name(index: int, rng: random.Random) -> str:
    thing = things()[index]
    draw = rng.random()
    if draw < 0.3 and len(thing.names) > 1:
        return rng.choice(thing.names[1:])
    if draw > 0.97 and thing.keywords:
        return rng.choice(thing.keywords)
    return thing.names[0]


def _noun_phrase(index: int, adjectives: list[str], rng: random.Random) -> str:
    name = _name(index, rng)
    words = " ".join([*adjectives, name])
    draw = rng.random()
    if name in NO_ARTICLE or is_plural(name):
        return words if draw < 0.85 else f"the {words}"
    if draw < 0.65:
        return with_article(words)
    return words if draw < 0.9 else f"the {words}" if draw < 0.95 else f"one {words}"


def _subject(scene: Scene, rng: random.Random) -> str:
    if len(scene.objects) == 2:
        first, second = scene.objects
        if first == second:
            count = rng.choice(["two", "two", "two", "2", "a pair of"])
            return f"{count} {plural(_name(first, rng))}"
        pair = (_noun_phrase(first, [], rng), _noun_phrase(second, [], rng))
        return rng.choice(BOTH).format(*pair)
    adjectives = []
    if scene.size:
        adjectives.append(rng.choice(SIZES[scene.size]))
    if rng.random() < 0.12:
        adjectives.append(rng.choice(ADJECTIVES))
    if rng.random() < 0.06:
        adjectives.append(rng.choice(unknown_words()))
    if scene.colour:
        adjectives.append(rng.choice(synonyms(scene.colour)))
    return _noun_phrase(scene.objects[0], adjectives, rng)


def _behind(background: str, rng: random.Random) -> str:
    if background in SCENES:
        return " " + rng.choice(SCENES[background])
    word = rng.choice(synonyms(background))
    phrase = rng.choice(BEHIND)
    return phrase.replace("a {}", with_article(word)).replace("{}", word)


def caption(scene: Scene, rng: random.Random) -> str:
    """One way to ask for a scene."""
    text = _subject(scene, rng)
    if rng.random() < 0.45:
        text = f"{rng.choice(LEADS)} {text}"
    if scene.background:
        text += _behind(scene.background, rng)
    if rng.random() < 0.12:
        text += rng.choice(TAILS)
    return text
