"""Prompts as people write them: brackets weigh, escapes are characters, and any text is read without an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text2image.core.prompt_syntax import Kind, is_plain, literal, parse, too_heavy, unknown, used

# Texts in which brackets and the like come often.
WRITTEN = st.text(st.sampled_from("ab ,()[]\\:1.5-|BREAK\n"), max_size=60) | st.text(max_size=60)
PLAIN = st.text(max_size=60).filter(
    lambda text: not set(text) & set("()[]\\") and "BREAK" not in text
)


def weights(prompt: str) -> list[tuple[str, float]]:
    return [(part.text, part.weight) for part in parse(prompt)]


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("an (old) fox", [("an ", 1.0), ("old", 1.1), (" fox", 1.0)]),
        ("((old)) fox", [("old", 1.1 * 1.1), (" fox", 1.0)]),
        ("(old:1.3) [fox]", [("old", 1.3), (" ", 1.0), ("fox", 1 / 1.1)]),
        ("(old : 1.3 )", [("old ", 1.3)]),
        ("(old:.5)", [("old", 0.5)]),
        ("(old:-1)", [("old", -1.0)]),
        ("((old:1.5) fox)", [("old", 1.5 * 1.1), (" fox", 1.1)]),
        (r"a \(real\) \[fox\] \\", [(r"a (real) [fox] " + "\\", 1.0)]),
        ("a (fox", [("a ", 1.0), ("fox", 1.1)]),
        ("a [fox", [("a ", 1.0), ("fox", 1 / 1.1)]),
        ("a) fox] :)", [("a) fox] :)", 1.0)]),
        ("(a:b) 1:2", [("a:b", 1.1), (" 1:2", 1.0)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(one)(two)", [("onetwo", 1.1)]),
        ("()", [("", 1.0)]),
        ("", [("", 1.0)]),
    ],
)
def test_brackets_weigh_as_in_the_web_ui(prompt: str, parts: list[tuple[str, float]]) -> None:
    assert weights(prompt) == parts


def test_a_break_stands_between_parts_whatever_is_around_it() -> None:
    parts = parse("(a fox BREAK a dog:1.3), BREAKFAST")
    assert [(part.kind, part.text, part.weight) for part in parts] == [
        (Kind.TEXT, "a fox", 1.3),
        (Kind.BREAK, "", 1.0),
        (Kind.TEXT, "a dog", 1.3),
        (Kind.TEXT, ", BREAKFAST", 1.0),
    ]


@given(WRITTEN)
def test_any_text_is_read(prompt: str) -> None:
    parts = parse(prompt, ["a", "b c"])
    assert parts
    for part in parts:
        if part.kind is Kind.TEXT:
            assert len(part.places) == len(part.text)
            # Each character stands in the prompt where it is said to stand.
            assert "".join(prompt[place] for place in part.places) == part.text
        else:
            assert 0 <= part.places[0] < len(prompt)


@given(PLAIN)
def test_a_text_without_special_characters_is_itself(prompt: str) -> None:
    assert parse(prompt) == literal(prompt)
    assert is_plain(prompt)


@given(PLAIN, st.lists(st.sampled_from("(["), max_size=8))
def test_weights_multiply(text: str, brackets: list[str]) -> None:
    closing = {"(": ")", "[": "]"}
    written = "".join(brackets) + text + "".join(closing[each] for each in reversed(brackets))
    expected = 1.0
    for each in brackets:
        expected *= 1.1 if each == "(" else 1 / 1.1
    read = parse(written)
    assert "".join(part.text for part in read) == text
    assert [part.weight for part in read if part.text] == pytest.approx([expected] if text else [])
    # What is left open reaches to the end, and so means the same here.
    unclosed = parse("".join(brackets) + text)
    assert [part.weight for part in unclosed] == pytest.approx([part.weight for part in read])


@given(st.text(max_size=40))
def test_an_escaped_text_is_itself(text: str) -> None:
    escaped = "".join("\\" + each if each in "()[]\\" else each for each in text)
    if "BREAK" not in text:
        assert parse(escaped)[0].text == text


def test_weights_that_nothing_can_be_drawn_with_are_found() -> None:
    assert too_heavy("((a (fox:1.5)))") is None
    assert too_heavy("(fox:11)") == 11.0
    assert too_heavy("(fox:-10.5)") == -10.5
    assert too_heavy("(" * 30 + "fox") == pytest.approx(1.1**30)
    assert too_heavy("((fox:" + "9" * 400 + "):0)") is not None


def test_names_of_embeddings_are_whole_words_in_any_case_and_the_longest_wins() -> None:
    names = ["bad", "bad-hands", "Easy.Negative"]
    prompt = "BAD-hands, (easy.negative:1.2), badly, bad_2, embedding:bad.safetensors, bad"
    read = [
        (part.text, part.weight) for part in parse(prompt, names) if part.kind is Kind.EMBEDDING
    ]
    assert read == [("bad-hands", 1.0), ("Easy.Negative", 1.2), ("bad", 1.0), ("bad", 1.0)]
    assert used(prompt, names) == ["bad-hands", "Easy.Negative", "bad"]
    assert not is_plain("bad", names)
    assert is_plain("badly", names)


def test_a_name_that_is_given_as_an_embeddings_and_is_none_is_found() -> None:
    assert unknown("a fox, embedding:worse", ["bad"]) == "worse"
    assert unknown("a fox, embedding:BAD, my embedding: none", ["bad"]) == ""
