"""A run on a GPU is short and rare: what goes wrong in a part of it is told, and costs nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtests.gpu import __main__ as gpu
from loadtests.gpu import packages, report
from loadtests.gpu.plan import FULL, REHEARSAL
from loadtests.gpu.record import Record, read
from loadtests.gpu.sections import SECTIONS, counted
from loadtests.gpu.served import compiled_of, note_memory, warm_up_of
from tests.doubles import TimedModel
from text2image.engine.memory import MemoryGuard
from text2image.engine.warmup import measure as warm_up

POINT = {"ms": 12.5, "least": 12.0, "first": 900.0, "peak": 2048.0}
SERVED = {
    "start": 30.0,
    "steps": {"1": 20.5, "2": 21.0},
    "decoding": 10.0,
    "cap": 64,
    "lone": {"bare pipeline": [0.5, 0.6], "HTTP": [0.5, 0.54], "gRPC": [0.45, 0.54]},
    "saturated": {
        "bare pipeline, batch 1": [2.0, 2.0],
        "bare pipeline, batch 16": [10.0, 12.0],
        "HTTP": [11.0, 12.0],
    },
    "rows": 60.0,
    "used": 30000.0,
    "Poisson": {
        "seconds": 20.0,
        "turns": [
            {
                "runs": {"0.99": {"requests": 200, "success": 1.0, "p99": 6.0}},
                "highest": {"20": 0.99},
            }
        ],
    },
}


def results() -> dict[str, Any]:
    figures = {"size": "true", "versions": {"torch": "9"}, "missing": [], "sections": {}}
    return {"measured": "2026-01-02", "machine": "a card", "figures": figures}


class Machine:
    """Runs sections on a clock of its own; some of them fail, some take longer than they may."""

    def __init__(self, tmp_path: Path, **ends: str) -> None:
        self.now = 0.0
        self.asked: dict[str, float] = {}
        self.seen: list[list[str]] = []
        self._ends = ends
        self._output = tmp_path

    def run(self, command: Sequence[str], seconds: float, output: Path) -> str | None:
        name, path = command[3], Path(command[5])
        if (self._output / "gpu.json").exists():
            told = json.loads((self._output / "gpu.json").read_text())
            self.seen.append([*told["figures"]["sections"]])
        self.asked[name] = seconds
        record = Record(path)
        record.figures["eager"] = {"1": POINT}
        record.save()
        ending = self._ends.get(name.replace(" ", "_"))
        self.now += seconds if ending == "slow" else 1.0
        return "cut off" if ending == "slow" else ending


def measured(machine: Machine, tmp_path: Path, total: float) -> dict[str, Any]:
    told = results()
    budgets = {"folder": 60.0, "steps": 50.0, "served": 40.0}
    gpu.measure(
        replace(FULL, budgets=budgets),
        list(budgets),
        told,
        tmp_path,
        tmp_path,
        ends=total,
        runner=machine.run,
        clock=lambda: machine.now,
    )
    return told["figures"]["sections"]


def test_a_section_that_fails_is_told_and_the_others_are_measured(tmp_path: Path) -> None:
    machine = Machine(tmp_path, steps="ended with 1: out of memory")
    sections = measured(machine, tmp_path, 480)
    assert [*sections] == ["folder", "steps", "served"]
    assert sections["steps"]["error"] == "ended with 1: out of memory"
    assert sections["steps"]["figures"] == {"eager": {"1": POINT}}, "what it had measured is kept"
    assert "error" not in sections["served"]
    assert "steps: ended with 1: out of memory" in (tmp_path / "gpu.md").read_text()


def test_results_are_written_after_each_section(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    measured(machine, tmp_path, 480)
    assert machine.seen == [["folder"], ["folder", "steps"]]


def test_figures_that_make_no_table_are_kept_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "tables", lambda figures: 1 / 0)
    sections = measured(Machine(tmp_path), tmp_path, 480)
    assert len(sections) == 3
    assert json.loads((tmp_path / "gpu.json").read_text())["figures"]["sections"] == sections


def test_each_section_has_its_own_time_and_all_have_no_more_than_there_is(tmp_path: Path) -> None:
    machine = Machine(tmp_path, folder="slow", steps="slow")
    sections = measured(machine, tmp_path, 100 + gpu.GRACE)
    assert machine.asked == {"folder": 60.0, "steps": 40.0}
    assert sections["served"]["error"] == "no time was left"


def test_the_plans_name_the_sections_that_there_are() -> None:
    assert [*FULL.budgets] == [*REHEARSAL.budgets] == [*SECTIONS]
    assert FULL.total <= 480


def test_what_a_section_has_started_ends_with_it() -> None:
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout
    child = psutil.Process(int(process.stdout.readline()))
    gpu.end(process)
    assert process.poll() is not None
    child.wait(60)
    process.stdout.close()


def test_the_end_of_its_log_says_why_a_section_failed(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "raise SystemExit('the reason')"]
    assert "the reason" in (gpu.run(words, 60, tmp_path) or "")
    assert gpu.run([sys.executable, "-c", ""], 60, tmp_path) is None


def test_a_part_that_fails_is_noted_and_the_rest_goes_on(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.json")
    with record.part("one"):
        raise RuntimeError("no kernel")
    with record.part("other"):
        record.figures["value"] = 1
    assert read(tmp_path / "record.json") == {
        "figures": {"value": 1},
        "errors": {"one": "RuntimeError: no kernel"},
    }


def test_the_report_has_the_ratios_and_a_column_for_each_way() -> None:
    told = results()
    told["figures"]["sections"] = {
        "steps": {"figures": {"eager bfloat16": {"1": POINT, "32": POINT}}, "errors": {}},
        "compiled steps": {"figures": {"compiled bfloat16": {"32": {**POINT, "ms": 8.0}}}},
        "compiled served": {"figures": {**SERVED, "compiling": {"2": 41.0, "64": 38.2}}},
        "served": {"figures": SERVED, "errors": {"Poisson": "TimeoutError: "}},
        "tests": {
            "figures": {"passed": 70, "failed": 1, "skipped": 2, "names": ["test_x"], "seconds": 50}
        },
    }
    page = report.page(told)
    for line in (
        "| lone over HTTP ÷ bare pipeline | 0.95 (0.90 to 1.00) | ≤ 1.05 |",
        "| saturated over HTTP ÷ best bare pipeline, batch 16 | 1.05 (1.00 to 1.10) | ≥ 1.0 |",
        "| rows | eager bfloat16 | compiled bfloat16 | memory, MiB (eager bfloat16) |",
        "| 1 | 12.50 |  | 2048 |",
        "| 1: 20.5, 2: 21 | 2: 41, 64: 38 |",
        "| 32 | 12.50 | 8.00 | 2048 |",
        "highest rate ÷ saturation: 0.99 within 20 × lone.",
        "70 passed, 1 failed: test_x, 2 skipped",
        "- served, Poisson: TimeoutError:",
    ):
        assert line in page, line


def test_a_run_of_which_nothing_came_has_a_report_too() -> None:
    told = results()
    told["figures"]["missing"] = ["diffusers==1"]
    told["figures"]["sections"] = {"served": {"error": "cut off", "figures": {}, "errors": {}}}
    page = report.page(told)
    assert "missing packages: diffusers==1" in page
    assert "- served: cut off" in page


def test_the_most_memory_is_kept_and_the_least_that_was_free() -> None:
    figures: dict[str, object] = {}
    for used, free in ((3, 9), (5, 7), (4, 8)):
        note_memory(
            figures,
            f'text2image_device_memory_used_bytes{{runner="0"}} {used * 2**20}\n'
            f'text2image_device_memory_free_bytes{{runner="0"}} {free * 2**20}\n',
        )
    note_memory(figures, "")
    assert figures == {"used": 5.0, "free": 7.0}


def test_the_cap_and_the_curve_are_those_of_the_servers_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    model = TimedModel()
    warm_up(model, MemoryGuard(), max_rows=4, clock=model.clock, report=lambda detail: None)
    told = warm_up_of(caplog.text)
    assert [*told] == ["steps", "encoding", "decoding", "cap"]
    assert told["steps"] == {"1": 30.0, "2": 40.0, "4": 60.0}
    assert told["decoding"] == 20.0
    assert told["cap"] == 4
    with pytest.raises(ValueError, match="no warm-up"):
        warm_up_of("nothing")


def test_what_is_compiled_is_told_by_the_servers_log() -> None:
    log = "INFO compiled for 2 rows of 4x64x64\nINFO compiled for 16 rows of 4x64x64\n"
    assert compiled_of(log) == [2, 16]
    assert compiled_of("nothing") == []


def test_failed_tests_are_counted_and_named() -> None:
    told = counted(
        '<testsuites><testsuite tests="4" failures="1" errors="1" skipped="1" time="2.5">'
        '<testcase name="a"/><testcase name="b"><failure/></testcase>'
        '<testcase name="c"><error/></testcase><testcase name="d"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    assert told == {"passed": 1, "failed": 2, "skipped": 1, "names": ["b", "c"], "seconds": 2.5}


def test_torch_is_never_installed_over_the_one_that_fits_the_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "_version", lambda package: "")
    names = {line.partition("==")[0] for line in packages.missing()}
    assert "torch" not in names
    assert names >= {"diffusers", "bentoml", "pytest", "aiohttp", "hypothesis"}
