"""`loadtests/gpu.sh`: all that is to be known of this product on a GPU, in one go of at most 8 minutes.

The engine's tests on the device; the networks of Stable Diffusion 1.5 and SDXL alone, as they are and compiled, by
rows; the server over HTTP and gRPC beside the bare pipeline, its highest Poisson rate, its memory. Nothing is
downloaded: weights are random. Each section runs in a process of its own with a time of its own; one that fails or is
cut off is told of, and keeps no other from being measured. Results are written after each: gpu.json, gpu.md, gpu.log.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from loadtests.gpu import packages, report
from loadtests.gpu.plan import FULL, REHEARSAL, Plan
from loadtests.gpu.record import read

ROOT = Path(__file__).parents[2]
# Seconds for a section that is cut off to end what it has started.
GRACE = 12.0
# Less is not worth starting anything in.
SHORTEST = 5.0
TAIL = 800

# Runs a command for at most so many seconds and tells what went wrong, if anything.
Runner = Callable[[Sequence[str], float, Path], str | None]


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    plan = REHEARSAL if options.rehearse else FULL
    options.output.mkdir(parents=True, exist_ok=True)
    absent = packages.provide(options.wheels)
    if absent:
        print(f"missing, and not to be had here: {', '.join(absent)}", flush=True)
    results: dict[str, Any] = {
        "measured": f"{date.today():%Y-%m-%d}",
        "machine": machine(),
        "figures": {
            "size": plan.size,
            "versions": packages.versions(),
            "missing": absent,
            "sections": {},
        },
    }
    with tempfile.TemporaryDirectory() as work:
        measure(
            plan,
            options.only or list(plan.budgets),
            results,
            Path(work),
            options.output,
            ends=began + (options.seconds or plan.total),
            rehearse=options.rehearse,
        )
    print(_page(results))
    print(f"written: {options.output}/gpu.json, gpu.md, gpu.log; {time.monotonic() - began:.0f} s")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadtests/gpu.sh", description=__doc__)
    parser.add_argument(
        "--rehearse", action="store_true", help="on the CPU with tiny models, to see that it works"
    )
    parser.add_argument("--only", nargs="+", choices=list(FULL.budgets), metavar="SECTION")
    parser.add_argument("--seconds", type=float, help="of all together (480)")
    parser.add_argument(
        "--wheels", type=Path, help="folder of wheels to install first, where there is no index"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(os.environ.get("OUT") or ROOT / "build" / "gpu"),
        help="folder of the results ($OUT, or build/gpu)",
    )
    return parser.parse_args()


def machine() -> str:
    """The card and the cores in a few words."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
        cards = [line for line in told.stdout.splitlines() if line] if not told.returncode else []
    except (OSError, subprocess.TimeoutExpired):
        cards = []
    return f"{'; '.join(cards) or 'no NVIDIA GPU'}; {os.cpu_count()} cores"


def measure(
    plan: Plan,
    names: Sequence[str],
    results: dict[str, Any],
    work: Path,
    output: Path,
    *,
    ends: float,
    rehearse: bool = False,
    runner: Runner | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """One section after the other until `ends` on the clock; the results are written after each."""
    runner = runner or run
    for name in names:
        began = clock()
        seconds = min(plan.budgets[name], ends - began - GRACE)
        if seconds < SHORTEST:
            results["figures"]["sections"][name] = {"error": "no time was left", "seconds": 0.0}
            _write(results, output)
            continue
        path = work / f"{name.replace(' ', '-')}.json"
        command = [sys.executable, "-m", "loadtests.gpu.sections", name, str(work), str(path)]
        print(f"{name}: at most {seconds:.0f} s", flush=True)
        error = runner([*command, *(["--rehearse"] if rehearse else [])], seconds, output)
        found = {**read(path), "seconds": clock() - began}
        if error:
            found["error"] = error
            print(f"{name}: {error}", flush=True)
        results["figures"]["sections"][name] = found
        _write(results, output)


def run(command: Sequence[str], seconds: float, output: Path) -> str | None:
    """Runs a section; what it says goes to the log."""
    with (output / "gpu.log").open("a+b") as log:
        start = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"cut off after {seconds:.0f} s"
        finally:
            end(process)
        if status:
            log.seek(start)
            told = log.read().decode(errors="replace")
            return f"ended with {status}: ...{told[-TAIL:]}"
    return None


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it has started: first asked to, then not."""
    import psutil

    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(GRACE - 2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue


def _write(results: dict[str, Any], output: Path) -> None:
    (output / "gpu.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (output / "gpu.md").write_text(_page(results))


def _page(results: dict[str, Any]) -> str:
    """The tables; what cannot be told in one is in the JSON, and must not end the run."""
    try:
        return report.page(results)
    except Exception as error:
        return f"no tables could be made: {type(error).__name__}: {error}\n"


if __name__ == "__main__":
    main()
