"""Limits are written as people say them, and a request costs pixels times steps times pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.init_images import control_picture, init_image
from tests.samples import REQUEST
from text2image.core.limits import RateLimit, parse_limits, work_of
from text2image.core.messages import Control, Sampler


def test_limits_are_read_and_written_alike() -> None:
    assert parse_limits(" 600/Minute ;5000 / day") == (
        RateLimit(600, "minute"),
        RateLimit(5000, "day"),
    )
    assert ";".join(map(str, parse_limits("1/second; 2/hour"))) == "1/second;2/hour"
    assert parse_limits("") == ()
    assert (RateLimit(3, "hour").quota, RateLimit(3, "hour").seconds) == (3_000_000, 3600)


@pytest.mark.parametrize(
    "text",
    ["600", "600/fortnight", "0/minute", "-1/minute", "1.5/minute", "1/minute;", "9/day;9/day"],
)
def test_what_is_no_limit_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no limit|twice"):
        parse_limits(text)


def test_a_request_costs_its_pixels_times_steps_times_pictures() -> None:
    request = replace(REQUEST, width=512, height=512, steps=20, n=3)
    assert work_of(request) == 512 * 512 * 20 * 3


def test_each_controlnet_costs_what_it_computes() -> None:
    shown = Control("edges", control_picture((512, 512)))
    request = replace(REQUEST, width=512, height=512, steps=20, n=3)
    for controls, steps in (((shown,), 27), ((shown, shown), 34)):
        assert work_of(replace(request, controls=controls)) == 512 * 512 * steps * 3


def test_of_a_picture_that_begins_from_another_the_steps_that_are_drawn_count_and_its_encoding() -> (
    None
):
    for sampler, calls in ((Sampler.EULER, 6), (Sampler.HEUN, 11)):
        request = replace(REQUEST, n=3, image=init_image(), strength=0.3, sampler=sampler)
        assert work_of(request) == 128 * 96 * (calls * 3 + 1)
