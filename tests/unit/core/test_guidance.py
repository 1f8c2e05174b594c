"""A fast picture is guided in one part of its own passes, and a request says whether it is one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.samples import MODEL
from text2image.core.errors import InvalidRequest
from text2image.core.guidance import EVERYWHERE, Interval, parse_interval
from text2image.core.messages import ModelInfo, Quality, RequestParams
from text2image.core.validation import MAX_STEPS, resolve

intervals = (
    st.tuples(st.integers(0, 100), st.integers(0, 100))
    .filter(lambda ends: ends[0] < ends[1])
    .map(lambda ends: Interval(ends[0] / 100, ends[1] / 100))
)
counts = st.integers(1, 2 * MAX_STEPS)


@given(counts)
def test_everywhere_is_every_pass(total: int) -> None:
    assert EVERYWHERE.passes(total) == range(total)


@given(intervals, counts)
def test_an_interval_holds_its_share_of_the_passes_and_always_one(
    interval: Interval, total: int
) -> None:
    """With none a picture in few steps would know nothing of how closely it is to follow its prompt."""
    passes = interval.passes(total)
    assert passes
    assert set(passes) <= set(range(total))
    assert abs(len(passes) - (interval.end - interval.start) * total) < 1.001 or len(passes) == 1


@given(intervals)
def test_an_interval_is_read_as_it_is_written(interval: Interval) -> None:
    assert parse_interval(str(interval)) == interval
    assert parse_interval(f" {interval.start} - {interval.end} ") == interval


@pytest.mark.parametrize(
    "text", ["", "0.5", "0.6-0.1", "0.5-0.5", "0-1.1", "-0.1-1", "a-b", "nan-1"]
)
def test_what_is_no_interval_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"write two shares .* as in 0\.1-0\.6"):
        parse_interval(text)


def quality_of(named: str | None, model: ModelInfo = MODEL) -> Quality:
    return resolve(RequestParams(prompt="a fox", quality=named), model).quality


def test_a_request_is_drawn_in_the_quality_that_it_names_or_else_in_the_servers() -> None:
    fast = replace(MODEL, quality=Quality.FAST)
    assert quality_of(None) is Quality.EXACT
    assert quality_of(None, fast) is Quality.FAST
    assert quality_of("Fast") is Quality.FAST
    assert quality_of("exact", fast) is Quality.EXACT


def test_where_nothing_is_left_out_a_fast_picture_is_the_exact_one() -> None:
    """So that it is found in the cache as what it is."""
    nothing = replace(MODEL, quality=Quality.FAST, fast="")
    assert quality_of("fast", nothing) is Quality.EXACT
    assert quality_of(None, nothing) is Quality.EXACT


@pytest.mark.parametrize("named", ["best", ""])
def test_another_quality_is_refused(named: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{named}'; it must be one of exact, fast"):
        quality_of(named)
