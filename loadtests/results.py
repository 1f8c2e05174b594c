"""What each section of the benchmarks showed last: kept as JSON beside the page that is made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from loadtests.gpu import report as gpu
from loadtests.inprocess import GUIDANCE_SCALE, STEPS
from loadtests.pages import table
from loadtests.sections import Figures, Section

INTRODUCTION = f"""The embedded model, {STEPS} steps, guidance scale {GUIDANCE_SCALE:g}, 128 x 128. Client, gateway and
runner share the cores. What is compared is measured in turns, and ratios are taken within a turn: medians of the turns,
with the lowest and the highest in brackets. `make bench` measures all, `make bench OPTIONS="--only SECTION"` one
section; each tells when and where it was measured last."""
# The key of what was measured on a GPU, by a command of its own.
GPU = "gpu"


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one section, and the day, the machine and the command that they come from."""

    measured: str
    machine: str
    command: str
    figures: Figures


Results: TypeAlias = dict[str, Result]


def beside(page: Path) -> Path:
    """The file of a page's results."""
    return page.with_suffix(".json")


def read(page: Path) -> Results:
    """What was measured so far; nothing if there is no such file."""
    path = beside(page)
    if not path.exists():
        return {}
    return {name: Result(**each) for name, each in json.loads(path.read_text()).items()}


def write(page: Path, results: Results, sections: Sequence[Section]) -> None:
    """Renews the results and the page."""
    told = {name: asdict(result) for name, result in results.items()}
    page.parent.mkdir(parents=True, exist_ok=True)
    beside(page).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    page.write_text(text(results, sections))


def text(results: Results, sections: Sequence[Section]) -> str:
    """The page: the ratios of all sections that were measured, and then one section after the other."""
    rows = [
        row
        for section in sections
        if section.name in results
        for row in section.yardsticks(results[section.name].figures)
    ]
    parts = [_part(section, results.get(section.name)) for section in sections]
    return "\n\n".join(
        [
            "# Benchmarks",
            INTRODUCTION,
            "## Yardsticks",
            table(("ratio", "measured", "aim"), rows),
            *parts,
            "## On a GPU",
            _on_a_gpu(results.get(GPU)) + "\n",
        ]
    )


def _part(section: Section, result: Result | None) -> str:
    heading = f"## {section.title}"
    if result is None:
        return f"{heading}\n\nNot measured yet (`--only {section.name}`)."
    return f"{heading}\n\n{_origin(result)}\n\n{section.text(result.figures)}"


def _origin(result: Result) -> str:
    return f"{result.measured}, `{result.command}`, {result.machine}."


def _on_a_gpu(result: Result | None) -> str:
    if result is None:
        return """Not measured on a GPU yet. `loadtests/gpu.sh` measures on a machine with one, in 8 minutes and without
downloads, and `make bench OPTIONS="--gpu build/gpu/gpu.json"` puts its tables here."""
    return f"{_origin(result)}\n\n{gpu.tables(result.figures)}"
