"""`loadtests/gpu.sh` goes its way on a CPU, so that it does not fail where its time is short."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.e2e.harness import ROOT


def test_networks_are_measured_from_the_command_to_the_tables(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *("loadtests/gpu.sh", "--rehearse", "--output", str(tmp_path)),
            *("--only", "folder", "steps"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    log = (tmp_path / "gpu.log").read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    sections = json.loads((tmp_path / "gpu.json").read_text())["figures"]["sections"]
    for name, section in sections.items():
        assert "error" not in section, log
        assert not section["errors"], f"{name}: {log}"
    assert sections["folder"]["figures"]["mebibytes"] > 0
    assert [*sections["steps"]["figures"]["eager float32"]] == ["1", "2", "4"]
    assert "| rows | eager float32 | eager bfloat16 | memory" in done.stdout
    assert (tmp_path / "gpu.md").read_text().strip() in done.stdout
