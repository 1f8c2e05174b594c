"""Adapters as requests name them: tags, limits, one order."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.samples import MODEL
from text2image.core.errors import InvalidRequest
from text2image.core.loras import (
    MAX_LORAS,
    Tagged,
    chosen,
    digest_of,
    is_writable,
    parse_lora,
    tag,
    take_tags,
    without_tags,
)
from text2image.core.messages import ControlInfo, LoraInfo, LoraWeight, RequestParams
from text2image.core.validation import resolve

INK = LoraInfo("ink", "0123456789")
MODEL_WITH = replace(
    MODEL,
    loras=(INK, LoraInfo("paper", "aaaaaaaaaa"), LoraInfo("xl", "bbbbbbbbbb", fault="is for XL")),
)
names = st.text("ab Ü1-_.()é", min_size=1, max_size=9).filter(is_writable)
weights = st.floats(-4, 4)


@given(st.lists(st.builds(LoraWeight, names, weights), max_size=4), st.text(max_size=40))
def test_what_is_written_as_tags_is_taken_out_again(loras: list[LoraWeight], words: str) -> None:
    words = words.replace("<", "").strip()
    tagged = take_tags(words + "".join(f" {tag(each)}" for each in loras))
    assert tagged == Tagged(words, tuple(loras))


@pytest.mark.parametrize(
    ("prompt", "words", "loras"),
    [
        ("a cat", "a cat", []),
        ("a cat <lora:ink:0.8>", "a cat", [("ink", 0.8)]),
        (
            "<lora:ink>a cat, <lora:my paper:-1> red",
            "a cat, red",
            [("ink", 1.0), ("my paper", -1.0)],
        ),
        ("a <lora cat", "a <lora cat", []),
        ("<hypernet:x:1> cat", "<hypernet:x:1> cat", []),
    ],
)
def test_tags_are_read_as_a1111_writes_them(
    prompt: str, words: str, loras: list[tuple[str, float]]
) -> None:
    assert take_tags(prompt) == Tagged(words, tuple(LoraWeight(*each) for each in loras))


@pytest.mark.parametrize("written", ["<lora:ink:>", "<lora:ink:much>", "<lora:ink:0.5:0.8>"])
def test_a_tag_with_more_than_a_number_is_told_to_be_one(written: str) -> None:
    with pytest.raises(InvalidRequest, match="write one number") as caught:
        take_tags(f"a cat {written}")
    assert [each.field for each in caught.value.violations] == ["prompt"]


def test_tags_and_named_adapters_come_together() -> None:
    params = RequestParams(prompt="a cat <lora:ink:0.5>", loras=(LoraWeight("ink", 0.25),))
    request = resolve(without_tags(params), MODEL_WITH)
    assert request.prompt == "a cat"
    assert request.loras == (LoraWeight("ink", 0.75, INK.hash),)


def test_requests_that_name_the_same_are_equal() -> None:
    named = [LoraWeight("ink", 0.5), LoraWeight("paper", 1.0), LoraWeight("ink", 0.25)]
    ways = {chosen(each, MODEL_WITH) for each in permutations(named)}
    assert len(ways) == 1
    assert chosen([LoraWeight("ink", 1.0), LoraWeight("ink", -1.0)], MODEL_WITH) == ()
    assert chosen(None, MODEL_WITH) == chosen([LoraWeight("ink", 0.0)], MODEL_WITH) == ()


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        (LoraWeight("sepia"), "'sepia', which is not here; embedded has ink, paper"),
        (LoraWeight("xl"), "it is for XL"),
        (LoraWeight("ink", 4.5), "must be between -4 and 4"),
        (LoraWeight("ink", float("nan")), "must be between -4 and 4"),
        (LoraWeight("ink", float("-inf")), "must be between -4 and 4"),
        (LoraWeight("ink", 1.0, "9999999999"), "another file, 0123456789"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(lora: LoraWeight, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve(RequestParams(prompt="a cat", steps=0, loras=(lora,)), MODEL_WITH)
    told = {each.field: each.reason for each in caught.value.violations}
    assert reason in told["loras"]
    assert "steps" in told


def test_a_model_without_adapters_says_so_and_too_many_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="embedded has no adapters"):
        chosen([LoraWeight("ink")], MODEL)
    with pytest.raises(InvalidRequest, match=f"at most {MAX_LORAS}"):
        chosen([LoraWeight(str(number)) for number in range(MAX_LORAS + 1)], MODEL)


def test_the_digest_changes_with_what_there_is() -> None:
    assert digest_of((), ()) == ""
    assert digest_of([INK], ()) != digest_of([replace(INK, fault="is gone")], ()) != ""
    edges = ControlInfo("edges", "0123456789")
    # One of before there were ControlNets is told the same of adapters alone.
    assert digest_of([INK], [edges]).startswith(digest_of([INK], ()))
    assert digest_of((), [edges]) not in ("", digest_of((), [replace(edges, fault="is gone")]))


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("ink", LoraWeight("ink")),
        ("ink:0.8", LoraWeight("ink", 0.8)),
        ("a:b:-1", LoraWeight("a:b", -1)),
    ],
)
def test_an_adapter_is_read_where_it_stands_alone(text: str, lora: LoraWeight) -> None:
    assert parse_lora(text) == lora


def test_names_that_no_dialect_could_write_are_none() -> None:
    assert is_writable("My style_v1.2 (ink)")
    assert not any(map(is_writable, ["", " a", "a:b", "a>", 'a"', "a,b", "a\nb", "x" * 97]))
