"""Which passes of a picture are whole: by its own count, and where there is nothing to take from before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from text2image.core.guidance import Interval
from text2image.core.passes import Pass, schedule, work


@given(total=st.integers(1, 150), every=st.integers(1, 20), ends=st.tuples(*[st.floats(0, 1)] * 2))
def test_an_outer_pass_has_the_features_of_all_its_rows_and_of_few_passes_before(
    total: int, every: int, ends: tuple[float, float]
) -> None:
    guided = Interval(min(ends), max(ends)).passes(total)
    passes = schedule(total, guided, every)
    assert [each.rows for each in passes] == [2 if n in guided else 1 for n in range(total)]
    whole = [number for number, each in enumerate(passes) if each.whole]
    for number, each in enumerate(passes):
        last = max(known for known in whole if known <= number)
        assert number - last < every
        assert passes[last].rows >= each.rows


def test_without_deep_cache_all_passes_are_whole() -> None:
    assert schedule(3, range(1, 2)) == (Pass(1), Pass(2), Pass(1))


def test_an_outer_pass_takes_its_share_of_a_whole_ones_work() -> None:
    passes = schedule(4, range(2), 2)
    assert passes == (Pass(2), Pass(2, whole=False), Pass(1), Pass(1, whole=False))
    assert work(passes, 0.1) == 2 + 0.2 + 1 + 0.1
