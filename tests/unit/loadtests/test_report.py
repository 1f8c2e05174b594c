"""The report tells what was measured, needs no other file, and is light or dark as its reader is."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from loadtests import report
from loadtests.drivers import Answer, Run
from loadtests.figures import Figures, Level, Offered
from tests.unit.loadtests.canned import run_of


def figures() -> Figures:
    """Two transports, and an open loop that is beyond the capacity of 2 pictures/s at its end."""
    levels = [
        Level(transport, users, run_of(*[seconds] * 40, every=1 / rate), rows)
        for transport, users, seconds, rate, rows in (
            ("HTTP", 20, 10.0, 2.0, 16.0),
            ("HTTP", 1, 0.8, 1.25, 2.0),
            ("gRPC", 1, 0.7, 1.4, None),
            ("gRPC", 20, 10.1, 2.0, None),
        )
    ]
    offered = [
        Offered(0.5, 1.0, run_of(*[1.0] * 20), 4.0),
        Offered(3.0, 6.0, run_of(*[9.0] * 40, refused=80, every=1 / 6), 16.0),
    ]
    return Figures("embedded <128x128>", "2 cores", 20.0, 10.0, levels, offered)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = report.write(figures(), tmp_path_factory.mktemp("load") / "run")
    return path.read_text(), path.parent


def test_the_table_has_a_line_for_each_level_with_its_figures(written: tuple[str, Path]) -> None:
    page, _ = written
    rows = [
        re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    ]
    assert ["HTTP", "1", "40", "100 %", *["0.80"] * 4, "1.25", "2.0"] in rows
    assert ["gRPC", "20", "40", "100 %", *["10.10"] * 4, "2.00", "-"] in rows
    assert [row[1] for row in rows if row and row[0] == "HTTP"] == ["1", "20"]
    (storm,) = (row for row in rows if row and row[0] == "300%")
    assert storm[1:4] == ["120", "33.3 %", "66.7 %"]


def test_the_file_needs_no_other_and_no_network(written: tuple[str, Path]) -> None:
    page, _ = written
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "<script" not in page
    assert "embedded &lt;128x128&gt;" in page


def test_each_plot_is_there_for_light_and_for_dark_readers(written: tuple[str, Path]) -> None:
    page, folder = written
    light = re.findall(r'<img[^>]*src="([^"]*)"', page)
    dark = re.findall(r'<source media="\(prefers-color-scheme: dark\)" srcset="([^"]*)"', page)
    plots = sorted(folder.glob("*.png"))
    assert len(light) == len(dark) == len(plots) == 4
    assert not set(light) & set(dark)
    for plot in plots:
        assert Image.open(io.BytesIO(plot.read_bytes())).width > 800


def test_the_terminal_is_told_the_same_figures() -> None:
    told = report.told(figures())
    assert re.search(r"HTTP +20 +40 +100 % +10\.00", told)
    assert re.search(r"300% +120 +33\.3 % +66\.7 %", told)


def test_all_is_said_only_of_all() -> None:
    told = report.told(
        Figures("", "", 1.0, levels=[Level("HTTP", 1, run_of(*[1.0] * 9999, failed=1), None)])
    )
    assert "99.9 %" in told
    assert "100 %" not in told


def test_capacity_and_lone_latency_are_those_of_the_levels() -> None:
    measured = figures()
    assert measured.capacity == 2.0
    assert measured.lone == pytest.approx(0.8)


def test_capacity_is_the_middle_of_the_levels_that_are_saturated() -> None:
    rates = {1: 1.0, 5: 3.0, 10: 3.7, 20: 4.0, 50: 3.4, 100: 3.6}
    levels = [
        Level("HTTP", users, run_of(*[1.0] * 40, every=1 / rate), None)
        for users, rate in rates.items()
    ]
    assert Figures("", "", 1.0, levels=levels).capacity == pytest.approx((3.6 + 3.7) / 2)


def test_goodput_counts_neither_the_start_nor_the_queue_that_is_left() -> None:
    # Two arrivals a second, one picture a second, each 4 s after it was asked for or later.
    answers = [Answer(number / 2, 4.0 + number, ok=True) for number in range(40)]
    assert Offered(2.0, 2.0, Run(answers, 43.0), None).goodput == pytest.approx(1.0, rel=0.1)
    assert Offered(2.0, 2.0, Run([], 1.0), None).goodput == 0.0
