"""Load runs ask for what their options say, as often as the weights say, and never for the same picture twice."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from loadtests.mixes import Mix


def drawn(mix: Mix, count: int = 2000) -> list[object]:
    generator = random.Random(1)
    return [mix.work(generator) for _ in range(count)]


def test_steps_and_sizes_come_as_often_as_they_weigh() -> None:
    work = drawn(Mix("10:1,20:3", "64x64, 128x256:3"))
    steps = Counter(each.steps for each in work)
    sizes = Counter(each.size for each in work)
    assert steps.keys() == {10, 20}
    assert steps[20] == pytest.approx(1500, rel=0.1)
    assert sizes.keys() == {(64, 64), (128, 256)}
    assert sizes[128, 256] == pytest.approx(1500, rel=0.1)


def test_what_is_not_named_is_left_to_the_server() -> None:
    (work,) = drawn(Mix(), 1)
    assert work.options.keys() == {"seed"}
    assert work.named("/generate") == "/generate"


def test_every_picture_is_a_new_one_although_the_generator_is_not() -> None:
    first, second = (drawn(Mix("20"), 100) for _ in range(2))
    seeds = {each.seed for each in (*first, *second)}
    assert len(seeds) == 200


def test_requests_are_counted_by_what_they_ask_for() -> None:
    (work,) = drawn(Mix("20", "64x32"), 1)
    assert work.named("/generate") == "/generate, 20 steps, 64x32"
    assert work.options == {"seed": work.seed, "steps": 20, "width": 64, "height": 32}


@pytest.mark.parametrize(
    ("steps", "sizes", "named"),
    [("ten", "", "'ten'"), ("10:x", "", "'x'"), ("10:0", "", "'0'"), ("", "64", "'64'")],
)
def test_what_cannot_be_read_is_named(steps: str, sizes: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Mix(steps, sizes)
