"""What the image's commands start, told by programs that stand in for those that they call."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.harness import ROOT

ENTRYPOINT = ROOT / "deploy/container/entrypoint.sh"
ECHO = """#!/bin/sh
echo "$(basename "$0") $*; page ${T2I_PAGE_PORT:-none}; listen ${T2I_RUNNER_LISTEN:-none}"
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH in which bentoml and python say how they were called."""
    for name in ("bentoml", "python"):
        (tmp_path / name).write_text(ECHO)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def called(programs: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [str(ENTRYPOINT), *words],
        env={"PATH": path, "T2I_PAGE_PORT": "8501", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "started"),
    [
        ((), "bentoml serve service:Gateway; page 8501; listen none"),
        (("serve", "--debug"), "bentoml serve service:Gateway --debug; page 8501; listen none"),
        (("gateway",), "bentoml serve service:Gateway; page none; listen none"),
        (("runner",), "bentoml serve service:Runner; page 8501; listen 0.0.0.0:50061"),
        (("page",), "python -m text2image.page; page 8501; listen none"),
        (
            ("python", "-m", "text2image.keys", "list"),
            "python -m text2image.keys list; page 8501; listen none",
        ),
    ],
)
def test_the_first_word_names_the_role(
    programs: Path, words: tuple[str, ...], started: str
) -> None:
    assert called(programs, *words, T2I_RUNNERS="runner:50061").stdout.strip() == started


def test_a_runner_listens_where_it_is_told(programs: Path) -> None:
    done = called(programs, "runner", T2I_RUNNER_LISTEN="10.0.0.7:7000")
    assert done.stdout.strip().endswith("listen 10.0.0.7:7000")


def test_a_gateway_without_runners_ends_with_one_line(programs: Path) -> None:
    done = called(programs, "gateway")
    assert done.returncode == 64
    assert "T2I_RUNNERS" in done.stderr
    assert not done.stdout
