"""`make coldstart`: from the command to the first picture, and what the time goes into; writes docs/cold-start.md.

Real starts of `bentoml serve`, one after the other, each with the file cache of the machine as it is and then (as root)
emptied. `--command` measures anything else that starts the same server and writes its log, as JSON, to standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from threading import Thread

import httpx

from loadtests import pages
from tests.e2e.harness import is_ready

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "cold-start.md"
PATIENCE = 300.0
# What the log says first when a part is over.
PARTS = {
    "the supervisor reads the settings, checks ports and starts the workers": "Starting production",
    "the runner's worker imports BentoML and the service": "importing torch",
    "the engine's thread imports torch and diffusers": "loading ",
    "it loads the weights": "measuring a step of 1 ",
    "it measures how large batches should be": " ready in ",
}
DRAWN = "the first picture is asked for over HTTP, drawn and stored"
_BETWEEN = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- /figures -->)", re.DOTALL)


class Log:
    """Follows a server's log and notes when each part was over, in seconds since the epoch."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.ends: dict[str, float] = {}
        self._process = process
        Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if not line.startswith("{"):
                continue
            entry = json.loads(line)
            for part, words in PARTS.items():
                if words in entry["message"]:
                    said = datetime.fromisoformat(entry["time"]).timestamp()
                    self.ends.setdefault(part, said)


def start(command: Sequence[str], port: int, variables: Mapping[str, str]) -> dict[str, float]:
    """Seconds that each part of a start takes, the first picture included.

    Raises:
        SystemExit: the server ended, or drew nothing in time.
    """
    began = time.time()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "T2I_LOG_FORMAT": "json", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        log = Log(process)
        wait_until_ready(process, port, log)
        picture = {"text": "a cat", "seed": 1}
        httpx.post(
            f"http://127.0.0.1:{port}/generate", json=picture, timeout=PATIENCE
        ).raise_for_status()
        moments = [began, *(log.ends[part] for part in PARTS), time.time()]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
    names = (*PARTS, DRAWN)
    return {name: moments[i + 1] - moments[i] for i, name in enumerate(names)}


def wait_until_ready(process: subprocess.Popen[str], port: int, log: Log) -> None:
    """Returns when it is ready and its log says how it came to be."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        if is_ready(f"http://127.0.0.1:{port}") and len(log.ends) == len(PARTS):
            return
        time.sleep(0.02)
    raise SystemExit("the server did not become ready")


def forget_files() -> bool:
    """Empties the machine's file cache, as a reboot does; whether that is allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def measure(command: Sequence[str], port: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """The parts of each start, by the state of the file cache."""
    runs: dict[str, list[dict[str, float]]] = {"warm": [], "cold": []}
    with tempfile.TemporaryDirectory() as folder:
        variables = {
            "PORT": str(port),
            "BENTOML_HOME": folder,
            "T2I_OUTPUT_DIR": folder,
            "T2I_CACHE_BYTES": "0",
        }
        # The first start compiles what has changed, and fills the cache.
        start(command, port, variables)
        for _ in range(rounds):
            runs["warm"].append(start(command, port, variables))
            if forget_files():
                runs["cold"].append(start(command, port, variables))
    return {state: parts for state, parts in runs.items() if parts}


def table(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Medians in seconds, and the sum's spread."""
    heads = {"warm": "files in memory, s", "cold": "files on disk alone, s"}
    lines = []
    for part in (*PARTS, DRAWN):
        medians = [statistics.median(run[part] for run in starts) for starts in runs.values()]
        lines.append([part, *(f"{seconds:.1f}" for seconds in medians)])
    sums = [sorted(sum(run.values()) for run in starts) for starts in runs.values()]
    shown = [f"**{statistics.median(s):.1f}** ({s[0]:.1f} to {s[-1]:.1f})" for s in sums]
    lines.append(["**command to first picture**", *shown])
    return pages.table(["part", *(heads[state] for state in runs)], lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=3000, help="HTTP's, on which it must listen")
    parser.add_argument("--command", type=shlex.split, help="what starts the server")
    asked = parser.parse_args()
    serve = [sys.executable, "-m", "bentoml", "serve", "service:Gateway"]
    runs = measure(asked.command or serve, asked.port, asked.rounds)
    rows = table(runs)
    print(rows)
    if not asked.command:
        today = f"{datetime.now().astimezone():%Y-%m-%d}"
        told = f"{today}, {len(os.sched_getaffinity(0))} cores, {asked.rounds} starts each, medians:\n\n{rows}"
        REPORT.write_text(_BETWEEN.sub(lambda _: told, REPORT.read_text()))


if __name__ == "__main__":
    main()
