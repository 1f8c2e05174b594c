"""Prompts of any length are cut into chunks as A1111's web UI cuts them, and what finds no room is told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text2image.core.messages import PromptSyntax
from text2image.engine.prompts.chunks import Chunk, Language, Limits, Reader, Unit, cut

COMMA = 7
LIMITS = Limits(15, 3)
BREAK = Unit(0, 1.0, 0, size=0)
UNITS = st.one_of(
    st.builds(lambda token, weight: Unit(token, weight, 0), st.integers(1, 9), st.floats(0.5, 2)),
    st.builds(lambda size: Unit(0, 1.0, 0, "word", size), st.integers(1, 15)),
    st.just(BREAK),
)


def words(text: str) -> list[Unit]:
    """A token for each letter, a comma for each comma, a break for each bar."""
    return [
        BREAK._replace(place=place)
        if each == "|"
        else Unit(COMMA if each == "," else 1, 1.0, place)
        for place, each in enumerate(text)
    ]


def lengths(text: str, limits: Limits = LIMITS) -> list[int]:
    return [len(chunk.tokens) for chunk in cut(words(text), limits, COMMA)[0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0]),
        ("a" * 15, [15]),
        ("a" * 16, [15, 1]),
        # What follows the last comma moves to the next chunk, if it is a few tokens.
        ("a" * 11 + "," + "a" * 5, [12, 5]),
        ("a" * 10 + "," + "a" * 6, [15, 2]),
        # A comma itself moves nothing.
        ("a" * 12 + ",aa,", [15, 1]),
        ("aa|aaa", [2, 3]),
        ("|aa", [0, 2]),
        ("aa||aa", [2, 0, 2]),
        ("aa|", [2]),
        # Nothing is moved to where it is not read.
        ("a" * 30 + "a" * 12 + "," + "aaaaa", [15, 15, 15]),
    ],
)
def test_chunks_end_where_they_do_in_the_web_ui(text: str, expected: list[int]) -> None:
    assert lengths(text) == expected


def test_the_first_that_finds_no_room_is_told() -> None:
    assert cut(words("a" * 45), LIMITS, COMMA)[1] is None
    assert cut(words("a" * 46), LIMITS, COMMA)[1] == 45
    assert cut(words("a|a|a|"), LIMITS, COMMA)[1] is None
    assert cut(words("a|a|a|a"), LIMITS, COMMA)[1] == 6


def test_an_embedding_is_never_cut_in_two_and_moves_with_its_words() -> None:
    word = Unit(0, 1.3, 0, "word", 4)
    chunks, unread = cut([*words("a" * 12), word, *words("aa")], LIMITS, COMMA)
    assert [len(chunk.tokens) for chunk in chunks] == [12, 6]
    assert chunks[1].embeddings == ((0, "word"),)
    assert chunks[1].weights == (1.3,) * 4 + (1.0,) * 2
    assert unread is None
    few = word._replace(size=3)
    moved, _ = cut([*words("a" * 11 + ","), few, *words("aa")], LIMITS, COMMA)
    assert [(len(each.tokens), each.embeddings) for each in moved] == [
        (12, ()),
        (5, ((0, "word"),)),
    ]


@given(st.lists(UNITS, max_size=80), st.integers(1, 6))
def test_no_token_is_lost_or_drawn_twice(units: list[Unit], most: int) -> None:
    numbered = [unit._replace(place=place) for place, unit in enumerate(units)]
    chunks, unread = cut(numbered, Limits(15, most), COMMA)
    assert 1 <= len(chunks) <= most
    assert all(len(chunk.tokens) == len(chunk.weights) <= 15 for chunk in chunks)
    read = numbered if unread is None else numbered[:unread]
    assert [token for chunk in chunks for token in chunk.tokens] == [
        token for unit in read for token in [unit.token] * unit.size
    ]
    assert [weight for chunk in chunks for weight in chunk.weights] == [
        weight for unit in read for weight in [unit.weight] * unit.size
    ]


class Letters:
    """A tokenizer whose tokens are letters, with a start and an end mark."""

    model_max_length = 12
    pad_token_id = 0

    def __call__(self, texts: Any, **_: Any) -> dict[str, Any]:
        if texts == "":
            return {"input_ids": [1, 2]}
        assert texts, "tokenizers of transformers raise"
        places = [[place for place, each in enumerate(text) if each != " "] for text in texts]
        return {
            "input_ids": [
                [ord(text[each]) for each in own] for text, own in zip(texts, places, strict=True)
            ],
            "offset_mapping": [[(each, each + 1) for each in own] for own in places],
        }

    def get_vocab(self) -> dict[str, int]:
        return {",</w>": ord(",")}


def reader(syntax: PromptSyntax, most: int = 2) -> Reader:
    return Reader(Letters(), Language(syntax, most, (("word", 3),)))


def test_what_is_not_read_begins_with_a_word_of_the_user() -> None:
    read = reader(PromptSyntax.A1111)
    assert read.read("(abcdefghij:1.2) klmnopq r(st)uv wx").unread == "r(st)uv wx"
    assert read.read(r"\(bcdefghi\) klmnopqrst").unread == ""
    assert read.read("abcdefghij klmnopqr word yz").unread == "word yz"


def test_a_prompt_may_have_no_text_at_all() -> None:
    read = reader(PromptSyntax.A1111, most=3)
    assert [chunk.tokens for chunk in read.read(" BREAK  BREAK ").chunks] == [(), ()]
    assert [chunk.tokens for chunk in read.read("word").chunks] == [(0, 0, 0)]
    assert [chunk.tokens for chunk in read.read("()").chunks] == [()]


def test_plain_prompts_are_read_as_they_stand() -> None:
    (chunk,) = reader(PromptSyntax.PLAIN).read("(a) word").chunks
    assert chunk == Chunk(tuple(map(ord, "(a)word")), (1.0,) * 7)


def test_chunks_are_filled_up_behind_their_end_mark() -> None:
    read = reader(PromptSyntax.A1111)
    (chunk,) = read.read("(a:1.5) word").chunks
    tokens, mask = read.tokens(chunk)
    assert tokens == [1, ord("a"), 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]
    assert mask == [1] * 6 + [0] * 6
    assert read.weights(chunk) == [1.0, 1.5] + [1.0] * 10
    assert len(read.weights(chunk)) == len(tokens)
