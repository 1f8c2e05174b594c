"""Batch occupancy is that of the time that was measured, and of nothing else."""

from __future__ import annotations

import pytest

from loadtests.occupancy import Reading, between, parse

EXPOSITION = """# HELP text2image_batch_rows Rows in a U-Net forward pass
text2image_batch_rows_bucket{le="1.0"} 4.0
text2image_batch_rows_count{runner="0"} 10.0
text2image_batch_rows_count{runner="1"} 5.0
text2image_batch_rows_sum 120.0
text2image_batch_rows_created 1.7e+09
text2image_batch_rows_summary_count 99.0
"""
# Two rows a pass until second 10, then sixteen until 20, and then none.
READINGS = [
    *(Reading(second, 2 * second, second) for second in range(10)),
    *(Reading(second, 20 + 16 * (second - 10), second) for second in range(10, 21)),
    Reading(25, 180, 20),
]


def test_the_totals_of_all_runners_are_read() -> None:
    assert parse(EXPOSITION, at=7.0) == Reading(7.0, rows=120.0, passes=15.0)


@pytest.mark.parametrize(
    ("begin", "end", "rows"),
    [(0, 9, 2), (10, 20, 16), (5, 15, 9), (12.2, 12.9, 16), (20, 25, None)],
)
def test_rows_are_those_of_the_time(begin: float, end: float, rows: float | None) -> None:
    assert between(READINGS, begin, end) == rows


def test_a_server_that_shows_nothing_has_no_rows() -> None:
    assert between([], 0, 10) is None
    assert between([Reading(5, 10, 5)], 0, 10) is None
