"""Locust's users draw on a real server in every contract, and a run's exit status says whether it kept its limits."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from loadtests import records
from tests.e2e.harness import ROOT, Server


def locust(server: Server, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A short run with tiny pictures, each request of it in the file `requests`."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", "loadtests/locustfile.py", "--headless"),
            *("--host", server.url, "--grpc", server.address, "--steps", "1:2,2:1"),
            *("--sizes", "64x64", "--spawn-rate", "10", "--stop-timeout", "60", "--only-summary"),
            *("--record", str(folder / "requests"), *words),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def csv_of(folder: Path, name: str) -> list[dict[str, str]]:
    """The rows of one of the CSVs of a run with `--csv run`."""
    with (folder / f"run_{name}.csv").open() as file:
        return list(csv.DictReader(file))


CALLS = {
    "HttpVisitor": ("POST", "/generate"),
    "GrpcVisitor": ("gRPC", "Generate"),
    "FirstContractVisitor": ("gRPC", "GenerateImage"),
}


def test_users_of_every_contract_draw_and_are_counted(server: Server, tmp_path: Path) -> None:
    before = server.metric('text2image_pictures_total{saved="yes"}')
    length = ("--users", "6", "--run-time", "2s", "--csv", str(tmp_path / "run"))
    done = locust(server, tmp_path, *CALLS, *length)
    assert done.returncode == 0, done.stdout + done.stderr
    answers = records.read(tmp_path / "requests")
    assert len(answers) >= 6
    assert all(answer.ok for answer in answers)
    assert server.metric('text2image_pictures_total{saved="yes"}') - before == len(answers)
    *named, total = csv_of(tmp_path, "stats")
    shapes = [f"{steps} steps, 64x64" for steps in (1, 2)]
    counted = {(row["Type"], row["Name"]) for row in named}
    assert counted <= {
        (kind, f"{call}, {shape}") for kind, call in CALLS.values() for shape in shapes
    }
    assert {name.partition(",")[0] for _, name in counted} == {call for _, call in CALLS.values()}
    assert int(total["Request Count"]) == len(answers)
    assert int(total["Failure Count"]) == 0


def test_a_broken_limit_fails_the_run_and_the_shape_ends_it(server: Server, tmp_path: Path) -> None:
    shape = ("--shape", "soak", "--users", "4", "--run-time", "2s", "--csv", str(tmp_path / "run"))
    done = locust(server, tmp_path, "GrpcVisitor", *shape, "--max-p95", "0.001")
    assert done.returncode == 1
    assert "threshold: 95 % were answered within" in done.stdout
    assert "4" in {row["User Count"] for row in csv_of(tmp_path, "stats_history")}


def test_failures_within_the_limit_do_not_fail_the_run(server: Server, tmp_path: Path) -> None:
    # One step too many for any server: every request is refused as invalid.
    wrong = ("--steps", "151", "--users", "1", "--run-time", "1s")
    assert locust(server, tmp_path, "HttpVisitor", *wrong, "--max-failures", "1").returncode == 0
    done = locust(server, tmp_path, "HttpVisitor", *wrong, "--max-failures", "0.5")
    assert done.returncode == 1
    assert "threshold: 100.0% of the requests failed" in done.stdout


def test_a_shape_without_a_peak_is_told_what_it_needs(server: Server, tmp_path: Path) -> None:
    done = locust(server, tmp_path, "HttpVisitor", "--shape", "ramp", "--run-time", "1s")
    assert done.returncode != 0
    assert "--shape needs --users" in done.stderr
