r"""Prompts as people write them: weights, breaks and the names of textual inversions. Plain Python.

The language is that of A1111's web UI, as its `modules/prompt_parser.py` documents `parse_prompt_attention`:

    (word)      weighs 1.1 times as much, ((word)) 1.21 times
    (word:1.3)  weighs 1.3 times as much
    [word]      weighs 1.1 times less
    \( \) \[ \] \\   are the characters themselves
    BREAK       ends the chunk of tokens that is read at once (`modules/sd_hijack_clip.py`)

Brackets may be nested, and those that nobody closes reach to the end. What only looks like this language is text: `:)`,
a bracket that closes nothing, `(a:b)`. Besides, `name` or `embedding:name` stands for the textual inversion of that
name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

# What brackets multiply by, and which close them.
_FACTORS = {"(": 1.1, "[": 1 / 1.1}
_CLOSING = {")": "(", "]": "["}
# Beyond this a word hardly changes a picture for the better, and numbers grow beyond what half precision holds.
MAX_WEIGHT = 10.0

_TOKEN = re.compile(
    r"\\[()\[\]\\]|\\|[(\[\])]|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|:",
    re.ASCII,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_SPECIAL = re.compile(r"[()\[\]\\]|\bBREAK\b")
# As ComfyUI writes it, where the file's suffix may follow.
_EXPLICIT = r"embedding:"
_SUFFIXES = r"(?:\.(?:safetensors|pt|bin))?"
_UNKNOWN = re.compile(rf"(?<!\w){_EXPLICIT}([\w][\w.\-]*)", re.IGNORECASE)


class Kind(Enum):
    """What a part of a prompt is."""

    TEXT = "text"
    BREAK = "break"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a prompt that has one weight.

    Attributes:
        text: to be read; of an embedding its name as its file has it.
        places: of each character of the text in the prompt; of an embedding and a break, where it begins.
    """

    text: str
    weight: float = 1.0
    places: Sequence[int] = ()
    kind: Kind = Kind.TEXT


def literal(prompt: str) -> list[Part]:
    """A prompt in which no character means anything but itself."""
    return [Part(prompt, 1.0, range(len(prompt)))]


def parse(prompt: str, embeddings: Iterable[str] = ()) -> list[Part]:
    """The parts of a prompt in their order; neighbours that weigh the same are one. It never raises.

    Args:
        embeddings: names of the textual inversions there are.
    """
    parts = _parsed(prompt) if _SPECIAL.search(prompt) else literal(prompt)
    names = _Names.of(tuple(embeddings))
    return [each for part in parts for each in names.split(part)] if names else [*parts]


def is_plain(prompt: str, embeddings: Iterable[str] = ()) -> bool:
    """Whether a prompt means nothing but its own characters."""
    first, *others = parse(prompt, embeddings)
    return not others and (first.text, first.weight, first.kind) == (prompt, 1.0, Kind.TEXT)


def too_heavy(prompt: str) -> float | None:
    """A weight in a prompt that is more than `MAX_WEIGHT`, or none that can be counted with; None if all are fine."""
    weights = (part.weight for part in parse(prompt))
    return next((weight for weight in weights if not abs(weight) <= MAX_WEIGHT), None)


def used(prompt: str, embeddings: Iterable[str]) -> list[str]:
    """Names of the textual inversions that a prompt has, each once."""
    parts = parse(prompt, embeddings)
    return list(dict.fromkeys(part.text for part in parts if part.kind is Kind.EMBEDDING))


def unknown(prompt: str, embeddings: Iterable[str]) -> str:
    """The first name that a prompt gives as that of an embedding, and that none has; empty if there is no such."""
    for part in parse(prompt, embeddings):
        if part.kind is Kind.TEXT and (match := _UNKNOWN.search(part.text)):
            return match[1]
    return ""


@dataclass(slots=True)
class _Piece:
    text: str
    places: Sequence[int]
    kind: Kind = Kind.TEXT
    weight: float = 1.0


@lru_cache(maxsize=64)
def _parsed(prompt: str) -> tuple[Part, ...]:
    """A request is parsed when it is checked, looked up, drawn and described."""
    return tuple(_merged(_weighed(prompt)))


def _weighed(prompt: str) -> list[_Piece]:
    """The prompt between its brackets, each piece with the weight of all that it stands in."""
    pieces: list[_Piece] = []
    # Where they were opened, counted in pieces.
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, weight: float) -> None:
        for piece in pieces[opened[bracket].pop() :]:
            piece.weight *= weight

    for match in _TOKEN.finditer(prompt):
        token, start = match[0], match.start()
        if token.startswith("\\"):
            # One that stands before nothing special is left out.
            pieces.append(_Piece(token[1:], range(start + 1, match.end())))
        elif token in opened:
            opened[token].append(len(pieces))
        elif match["weight"] is not None and opened["("]:
            close("(", float(match["weight"]))
        elif token in _CLOSING and opened[_CLOSING[token]]:
            close(_CLOSING[token], _FACTORS[_CLOSING[token]])
        else:
            pieces.extend(_broken(token, start))
    for bracket in opened:
        while opened[bracket]:
            close(bracket, _FACTORS[bracket])
    return pieces


def _broken(text: str, start: int) -> Iterator[_Piece]:
    """A text that begins at a place, with its breaks."""
    end = 0
    for match in _BREAK.finditer(text):
        yield _Piece(text[end : match.start()], range(start + end, start + match.start()))
        yield _Piece("", range(start + match.start(), start + match.end()), Kind.BREAK)
        end = match.end()
    yield _Piece(text[end:], range(start + end, start + len(text)))


def _merged(pieces: list[_Piece]) -> list[Part]:
    parts: list[Part] = []
    for piece in pieces:
        if piece.kind is Kind.BREAK:
            parts.append(Part("", 1.0, piece.places[:1], Kind.BREAK))
            continue
        if not piece.text:
            continue
        last = parts[-1] if parts else None
        if last and last.kind is Kind.TEXT and last.weight == piece.weight:
            places = (*last.places, *piece.places)
            parts[-1] = Part(last.text + piece.text, last.weight, places)
        else:
            parts.append(Part(piece.text, piece.weight, piece.places))
    return parts or literal("")


class _Names:
    """Finds the names of textual inversions as whole words, whatever their case; of several the longest."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._by_lower = {name.lower(): name for name in names}
        longest_first = sorted(self._by_lower, key=len, reverse=True)
        either = "|".join(map(re.escape, longest_first))
        self._pattern = re.compile(
            rf"(?<!\w)(?:{_EXPLICIT}(?P<explicit>{either}){_SUFFIXES}|(?P<name>{either}))(?!\w)",
            re.IGNORECASE,
        )

    @staticmethod
    @lru_cache(maxsize=64)
    def of(names: tuple[str, ...]) -> _Names | None:
        return _Names(names) if names else None

    def split(self, part: Part) -> Iterator[Part]:
        """A part without the names in it, and these between its pieces."""
        if part.kind is not Kind.TEXT:
            yield part
            return
        end = 0
        for match in self._pattern.finditer(part.text):
            name = self._by_lower.get((match["explicit"] or match["name"]).lower())
            if name is None:
                # Letters that are alike but in their case only to some.
                continue
            if match.start() > end:
                yield _cut(part, end, match.start())
            yield Part(name, part.weight, part.places[match.start() :][:1], Kind.EMBEDDING)
            end = match.end()
        if end < len(part.text) or not end:
            yield _cut(part, end, len(part.text))


def _cut(part: Part, start: int, end: int) -> Part:
    return Part(part.text[start:end], part.weight, part.places[start:end])
