"""What could not be checked for vulnerabilities is never told as checked, and what is vulnerable fails."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tools import audit

SAFE = {"name": "grpcio", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}
VULNERABLE = {
    "name": "pillow",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": "..."}],
}


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes pip-audit say what a test wants it to."""

    def report(stdout: str, stderr: str = "") -> None:
        done = subprocess.CompletedProcess([], 0, stdout, stderr)
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)

    return report


@pytest.mark.parametrize(
    ("packages", "status", "told", "aloud"),
    [
        ([SAFE], 0, "1 packages were checked", False),
        ([SAFE, UNKNOWN], 0, "1 of 2 packages were not checked", True),
        ([UNKNOWN, UNKNOWN], 0, "2 of 2 packages were not checked", True),
        ([SAFE, VULNERABLE], 1, "pillow 1.0: PYSEC-1, fixed in 1.1", False),
        ([UNKNOWN, VULNERABLE], 1, "torch", True),
    ],
)
def test_a_report_is_told_as_it_is(
    reported: Any,
    capsys: pytest.CaptureFixture[str],
    packages: list[dict[str, Any]],
    status: int,
    told: str,
    aloud: bool,
) -> None:
    reported(json.dumps({"dependencies": packages, "fixes": []}))
    assert audit.main() == status
    shown = capsys.readouterr().out
    assert told in shown
    assert ("WARNING" in shown) == aloud


def test_a_service_out_of_reach_is_told_and_fails_nothing(
    reported: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    reported("", "Traceback ...\nConnectionError: Failed to resolve 'pypi.org'\n")
    assert audit.main() == 0
    shown = capsys.readouterr().out
    assert "WARNING: no package was checked" in shown
    assert "Failed to resolve 'pypi.org'" in shown
