"""Prompts of any length, cut into chunks of as many tokens as a text encoder reads at once. Plain Python.

As A1111's `modules/sd_hijack_clip.py` does it (`tokenize_line`, with its default `comma_padding_backtrack` of 20): a
chunk that is full where no comma stands gives back what follows its last comma, if that are few tokens; a textual
inversion is never cut in two; BREAK ends a chunk, and one that ends the prompt, or the chunks, means nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from text2image.core.messages import PromptSyntax
from text2image.core.prompt_syntax import Kind, Part, literal, parse

# Of a chunk, the part that may be given back: 20 tokens of 75.
_BACKTRACK = 20 / 75
# What a token of English takes in letters and spaces, about.
_CHARACTERS = 4


class Unit(NamedTuple):
    """What takes room in a chunk: a token, the vectors of a textual inversion, or nothing, which is a break.

    `place` is where it begins in the prompt, `embedding` the name of an inversion, and `size` the tokens it takes.
    """

    token: int
    weight: float
    place: int
    embedding: str = ""
    size: int = 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens between a start and an end mark, and what each weighs.

    `embeddings` are textual inversions, each with the place of its first vector, where the tokens are 0.
    """

    tokens: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    embeddings: tuple[tuple[int, str], ...] = ()

    @property
    def is_weighed(self) -> bool:
        return any(weight != 1.0 for weight in self.weights)


class Reading(NamedTuple):
    """A prompt as an encoder reads it, and the end of it that it does not, from the first word not read whole."""

    chunks: tuple[Chunk, ...]
    unread: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Tokens of a chunk without its marks, and the most chunks that are read of a prompt."""

    length: int
    most: int


def cut(units: Iterable[Unit], limits: Limits, comma: int) -> tuple[tuple[Chunk, ...], int | None]:
    """The chunks, at least one, and the place of what found no room in them; None if all did.

    Args:
        comma: the token of a comma.
    """
    cutter = _Cutter(limits, comma)
    unread = next((unit.place for unit in units if not cutter.put(unit)), None)
    return cutter.finished(), unread


class _Cutter:
    def __init__(self, limits: Limits, comma: int) -> None:
        self._limits = limits
        self._comma = comma
        self._chunks: list[Chunk] = []
        self._units: list[Unit] = []
        self._filled = 0
        # Units up to the last comma, it included, and the tokens before it; None where there is none.
        self._after_comma: tuple[int, int] | None = None

    def put(self, unit: Unit) -> bool:
        """Whether there was room for it."""
        if not unit.size:
            if len(self._chunks) < self._limits.most:
                self._close()
            return True
        if self._is_comma(unit):
            self._after_comma = (len(self._units) + 1, self._filled)
        elif self._gives_back():
            self._give_back()
        if self._filled + unit.size > self._limits.length:
            self._close()
        if len(self._chunks) >= self._limits.most:
            return False
        self._units.append(unit)
        self._filled += unit.size
        return True

    def finished(self) -> tuple[Chunk, ...]:
        if len(self._chunks) < self._limits.most and (self._units or not self._chunks):
            self._close()
        return tuple(self._chunks)

    def _is_comma(self, unit: Unit) -> bool:
        return unit.token == self._comma and not unit.embedding

    def _gives_back(self) -> bool:
        # What the last chunk gave back nobody would read.
        if self._after_comma is None or len(self._chunks) + 1 >= self._limits.most:
            return False
        length = self._limits.length
        return self._filled == length and length - self._after_comma[1] <= _BACKTRACK * length

    def _give_back(self) -> None:
        assert self._after_comma is not None
        kept = self._after_comma[0]
        moved = self._units[kept:]
        del self._units[kept:]
        self._close()
        self._units = moved
        self._filled = sum(unit.size for unit in moved)

    def _close(self) -> None:
        tokens: list[int] = []
        weights: list[float] = []
        embeddings: list[tuple[int, str]] = []
        for unit in self._units:
            if unit.embedding:
                embeddings.append((len(tokens), unit.embedding))
            tokens += [unit.token] * unit.size
            weights += [unit.weight] * unit.size
        self._chunks.append(Chunk(tuple(tokens), tuple(weights), tuple(embeddings)))
        self._units, self._filled, self._after_comma = [], 0, None


@dataclass(frozen=True, slots=True)
class Language:
    """How a model reads prompts.

    Attributes:
        most_chunks: of a prompt that are read.
        embeddings: names of textual inversions, and the tokens that each takes.
    """

    syntax: PromptSyntax = PromptSyntax.PLAIN
    most_chunks: int = 1
    embeddings: tuple[tuple[str, int], ...] = ()

    def parts(self, prompt: str) -> list[Part]:
        if self.syntax is PromptSyntax.A1111:
            return parse(prompt, [name for name, _ in self.embeddings])
        return literal(prompt)


class Reader:
    """A tokenizer of Hugging Face's, asked for chunks."""

    def __init__(self, tokenizer: Any, language: Language) -> None:
        self._tokenizer = tokenizer
        self._language = language
        self._sizes = dict(language.embeddings)
        marks = tokenizer("")["input_ids"]
        self._begin, self._end = marks[:-1], marks[-1:]
        self._pad = int(tokenizer.pad_token_id)
        self._comma = int(tokenizer.get_vocab().get(",</w>", -1))
        self._limits = Limits(int(tokenizer.model_max_length) - len(marks), language.most_chunks)

    @property
    def first(self) -> int:
        """The place of a chunk's first token behind the marks that it begins with."""
        return len(self._begin)

    def guess(self, prompt: str) -> int:
        """About how many chunks a prompt has, without looking at it."""
        chunks = math.ceil(len(prompt) / (_CHARACTERS * self._limits.length))
        return min(max(1, chunks), self._limits.most)

    def read(self, prompt: str) -> Reading:
        chunks, place = cut(self._units(prompt), self._limits, self._comma)
        if place is None:
            return Reading(chunks, "")
        while place > 0 and not prompt[place - 1].isspace():
            place -= 1
        return Reading(chunks, prompt[place:].strip())

    def tokens(self, chunk: Chunk) -> tuple[list[int], list[int]]:
        """A chunk's tokens with their marks, filled up, and 1 for each that is no filling."""
        told = [*self._begin, *chunk.tokens, *self._end]
        left = self._limits.length + len(self._begin) + len(self._end) - len(told)
        return told + [self._pad] * left, [1] * len(told) + [0] * left

    def weights(self, chunk: Chunk) -> list[float]:
        """What each of these tokens weighs."""
        left = self._limits.length - len(chunk.weights) + len(self._end)
        return [1.0] * len(self._begin) + [*chunk.weights] + [1.0] * left

    def _units(self, prompt: str) -> Iterator[Unit]:
        parts = self._language.parts(prompt)
        texts = [part.text for part in parts if part.kind is Kind.TEXT]
        read = self._tokenized(texts) if texts else iter(())
        for part in parts:
            if part.kind is Kind.BREAK:
                yield Unit(0, 1.0, part.places[0], size=0)
            elif part.kind is Kind.EMBEDDING:
                size = self._sizes[part.text]
                yield Unit(0, part.weight, part.places[0], part.text, size)
            else:
                for token, (start, _) in zip(*next(read), strict=True):
                    yield Unit(token, part.weight, part.places[start])

    def _tokenized(self, texts: list[str]) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """The tokens of each text, and where each begins and ends in it."""
        told = self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        return zip(told["input_ids"], told["offset_mapping"], strict=True)
