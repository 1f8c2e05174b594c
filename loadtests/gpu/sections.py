"""The sections, each for a process of its own: `python -m loadtests.gpu.sections NAME WORK RECORD [--rehearse]`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

from loadtests.gpu.plan import FULL, REHEARSAL, Plan
from loadtests.gpu.record import Record

ROOT = Path(__file__).parents[2]
# Names of failed tests that the report has room for.
MOST_NAMES = 20


def folder(plan: Plan, record: Record, work: Path) -> None:
    """Writes the model that the servers load."""
    import torch

    from loadtests.gpu.models import save_pipeline

    save_pipeline(_model(work), plan.size, plan.device, getattr(torch, plan.dtypes[0]))
    size = sum(file.stat().st_size for file in _model(work).rglob("*") if file.is_file())
    record.figures["mebibytes"] = size / 2**20


def steps(kind: str, *, compiled: bool) -> Callable[[Plan, Record, Path], None]:
    """The network alone."""

    def measure(plan: Plan, record: Record, work: Path) -> None:
        from loadtests.gpu import steps

        (steps.compiled if compiled else steps.eager)(plan, record, kind)

    return measure


def served(*, compiled: bool) -> Callable[[Plan, Record, Path], None]:
    """The server."""

    def measure(plan: Plan, record: Record, work: Path) -> None:
        from loadtests.gpu import served

        (served.measure_compiled if compiled else served.measure)(plan, record, work, _model(work))

    return measure


def tests(plan: Plan, record: Record, work: Path) -> None:
    """The tests of the engine's promises, on the device."""
    report = work / "tests.xml"
    command = [
        *(sys.executable, "-m", "pytest", "tests/integration/engine", "-m", "device", "-q"),
        *("-p", "no:cacheprovider", f"--junitxml={report}", *plan.tests),
    ]
    environment = {**os.environ, "T2I_TEST_DEVICE": plan.device}
    subprocess.run(command, cwd=ROOT, env=environment, check=False)
    record.figures |= counted(report.read_text())


def counted(junit: str) -> dict[str, object]:
    """How many tests passed, failed and were skipped, and the names of those that failed."""
    # The file is what our own pytest has just written.
    suite = ElementTree.fromstring(junit).find("testsuite")
    assert suite is not None
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    names = [
        case.get("name", "")
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {
        "passed": count["tests"] - failed - count["skipped"],
        "failed": failed,
        "skipped": count["skipped"],
        "names": names[:MOST_NAMES],
        "seconds": float(suite.get("time", 0)),
    }


SECTIONS: dict[str, Callable[[Plan, Record, Path], None]] = {
    "folder": folder,
    "steps": steps("sd15", compiled=False),
    "sdxl steps": steps("sdxl", compiled=False),
    "served": served(compiled=False),
    "tests": tests,
    "compiled steps": steps("sd15", compiled=True),
    "compiled served": served(compiled=True),
    "compiled sdxl steps": steps("sdxl", compiled=True),
}


def _model(work: Path) -> Path:
    return work / "stable-diffusion-1.5"


def main() -> None:
    name, work, path, *options = sys.argv[1:]
    # Whoever is cut off ends what it has started, and leaves what it has measured.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    record = Record(Path(path))
    try:
        SECTIONS[name](REHEARSAL if options else FULL, record, Path(work))
    finally:
        record.save()


if __name__ == "__main__":
    main()
