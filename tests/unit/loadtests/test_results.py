"""The page of benchmarks is made of results beside it: a section measured anew leaves the others as they were."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from loadtests import bench, flood, neighbour, overload, results, throughput
from loadtests.results import GPU, Result
from loadtests.sections import QUICK, Bench, Section
from tests.unit.loadtests.canned import run_of

LONE = {
    "bare pipeline": [0.40, 0.50],
    "engine in process": [0.30, 0.40],
    "HTTP": [0.32, 0.35],
    "gRPC": [0.32, 0.36],
}


def result(figures: dict[str, Any], day: str = "2026-01-02") -> Result:
    return Result(day, "2 cores", "make bench", figures)


def section(name: str, day: str = "") -> Section:
    async def measure(bench: Any) -> dict[str, Any]:
        return {"value": f"{name} of today"}

    return Section(
        name,
        name.title(),
        measure,
        lambda figures: figures["value"],
        lambda figures: [(f"ratio of {name}", "1.00", "≥ 1")],
    )


def test_the_page_that_is_there_is_the_one_that_its_results_make() -> None:
    assert bench.REPORT.read_text() == results.text(results.read(bench.REPORT), bench.SECTIONS)


def test_what_was_never_measured_is_said_and_has_no_ratio(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    results.write(page, {"lone": result(LONE)}, bench.SECTIONS)
    told = page.read_text()
    assert "Not measured yet (`--only neighbour`)." in told
    assert "Not measured on a GPU yet." in told
    assert "busy neighbour ÷" not in told
    assert "| lone over HTTP ÷ bare pipeline | 0.75 (0.70 to 0.80) | ≤ 0.7 |" in told


def test_one_section_measured_anew_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    both = (section("first"), section("second"))
    monkeypatch.setattr(bench, "SECTIONS", both)
    old = {each.name: result({"value": f"{each.name} of old"}) for each in both}
    results.write(page, old, both)

    class Server:
        url, address = "http://127.0.0.1:1", "127.0.0.1:1"

    with ExitStack() as stack:
        server: Any = Server()
        known = results.read(page)
        asyncio.run(bench.measure(QUICK, both[1:], server, stack, page, known, "a command"))
    told = page.read_text()
    assert "first of old" in told
    assert "second of today" in told
    assert "second of old" not in told
    assert told.index("ratio of first") < told.index("ratio of second") < told.index("## First")
    assert results.read(page)["second"].command == "a command"
    assert results.read(page)["first"] == old["first"]


def test_tables_of_a_gpu_come_from_the_file_of_the_other_command(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(
        '{"measured": "2026-01-02", "machine": "a card", "figures": '
        '{"size": "true", "versions": {"torch": "9.9"}, "missing": [], "sections": {}}}'
    )
    told = results.text({GPU: bench.of_a_gpu(file)}, bench.SECTIONS)
    assert "2026-01-02, `loadtests/gpu.sh`, a card." in told
    assert "torch 9.9" in told
    assert "Not measured on a GPU" not in told


def test_ratios_are_taken_within_a_turn() -> None:
    figures = {
        "lone, s": {"without": [0.4, 0.8], "with": [0.8, 0.8]},
        "saturated, pictures/s": {"without": [4.0, 2.0], "with": [2.0, 2.0]},
    }
    told = [value for _, value, _ in neighbour.yardsticks(figures)]
    assert told == ["1.50 (1.00 to 2.00)", "0.75 (0.50 to 1.00)"]
    assert "| lone, s | 0.60 (0.40 to 0.80) |" in neighbour.text(figures)


def test_throughput_is_compared_with_the_best_batch() -> None:
    figures = {"bare": {"1": [2.0, 2.0], "8": [4.0, 5.0]}, "served": {"HTTP": [4.0, 6.0]}}
    assert throughput.throughput_yardsticks(figures) == [
        (
            "saturated over HTTP ÷ bare pipeline's best (batch 8)",
            "1.10 (1.00 to 1.20)",
            "≥ 1.1",
        )
    ]


def test_the_storm_is_told_by_shares_of_the_capacity_around_it() -> None:
    run = run_of(*[1.0] * 40, refused=80, every=1 / 4)
    storm = overload.Storm((4.0, 2.0), 0.4, 5.0, {0.5: run}, run, [2.0**20] * 8, [0.5])
    figures = overload.told(storm)
    assert figures["requests"] == 120
    assert figures["pictures"] == 40
    curve, storm_row = figures["rows"]
    assert curve["of_capacity"] == curve["goodput"] / 5.0
    assert storm_row["of_capacity"] == storm_row["goodput"] / 3.0
    assert "| 300% |" in overload.text(figures)


def test_goodput_of_a_flood_is_a_share_of_the_capacity_beside_one() -> None:
    each = {"goodput": 4.5, "arrivals": 900.0, "refusal": 0.0005}
    figures = {"floods": [{"capacity": 5.0, **each}, {"capacity": 4.5, **each}]}
    assert flood.yardsticks(figures)[0][1] == "0.95 (0.90 to 1.00)"
    assert "| gateway's CPU for each refusal, ms | 0.50 (0.50 to 0.50) |" in flood.text(figures)


def test_the_neighbour_is_there_while_it_is_wanted_and_no_longer() -> None:
    with neighbour.busy() as process:
        assert process.poll() is None
    assert process.poll() is not None


async def test_each_turn_is_measured_without_the_neighbour_and_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there: list[bool] = []

    @contextmanager
    def busy() -> Iterator[None]:
        there.append(True)
        yield
        there.pop()

    async def call(seed: int, steps: int) -> None:
        asked.append(bool(there))

    asked: list[bool] = []
    monkeypatch.setattr(neighbour, "busy", busy)
    monkeypatch.setattr(neighbour, "LONE_SECONDS", 0.0)
    monkeypatch.setattr(neighbour, "CROWD_SECONDS", 0.0)
    figures = await neighbour.measure(
        cast(Bench, SimpleNamespace(plan=QUICK, calls={"HTTP": call}))
    )
    assert asked == ([False] * (1 + neighbour.CROWD) + [True] * (1 + neighbour.CROWD)) * QUICK.turns
    for series in figures.values():
        assert len(series["without"]) == len(series["with"]) == QUICK.turns


async def test_a_crowd_that_is_not_answered_is_no_throughput() -> None:
    async def call(seed: int, steps: int) -> None:
        if lone_was_asked:
            raise RuntimeError
        lone_was_asked.append(True)

    lone_was_asked: list[bool] = []
    plan = replace(QUICK, lone_calls=1)
    bench = cast(Bench, SimpleNamespace(plan=plan, calls={"HTTP": call}))
    with pytest.raises(RuntimeError, match="only 0%"):
        await neighbour.measure(bench)
