"""The command for many requests draws each once, on a real server and alone, whatever ends it in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.harness import Server, eventually
from tests.e2e.test_cli import SECONDS, command, environment, run
from tests.e2e.test_pictures import assert_same
from text2image.cli.manifest import NAME
from text2image.gateway import metadata
from text2image.gateway.sheets import SIDE

CHEAP = ("--size", "64x64", "--steps", "2")


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / NAME).read_text().splitlines()]


def test_a_table_is_drawn_with_all_that_is_varied_and_what_failed_is_told(
    server: Server, tmp_path: Path
) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text('prompt,guidance_scale,model\n"a fox, red",2,\na cat,,no-such-model\n')
    words = (*command("batch", str(table), "--out", "out", "--seeds", "1-2", "--sheet"), *CHEAP)
    done = run(tmp_path, *words, "--server", server.address)
    assert done.returncode == 1, done.stderr
    paths = done.stdout.splitlines()
    assert len(paths) == 2
    params = [metadata.parse(metadata.read(tmp_path / path)) for path in sorted(paths)]
    assert [(each.prompt, each.seed, each.guidance_scale) for each in params] == [
        ("a fox, red", 1, 2.0),
        ("a fox, red", 2, 2.0),
    ]
    told = manifest(tmp_path / "out")
    assert Counter(record["status"] for record in told) == {"drawn": 2, "failed": 2}
    assert "no-such-model" in done.stderr
    assert "2 of 4 requests failed" in done.stderr.splitlines()[-1]
    sheet = Image.open(tmp_path / "out" / "sheet.png")
    assert min(sheet.size) > 2 * SIDE
    # What is drawn stays, and what failed is tried again.
    again = run(tmp_path, *words, "--server", server.address)
    assert (again.returncode, again.stdout) == (1, "")
    assert "2 of 4 requests are drawn already" in again.stderr


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_was_ended_goes_on_and_draws_nothing_twice(
    server: Server, tmp_path: Path, end: signal.Signals
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a fox", "n": 2}\n{"prompt": "a cat"}\n')
    folder = tmp_path / "out"
    words = (*command("batch", str(prompts), "--out", "out", "--seeds", "1-10"), "--size", "64x64")
    words = (*words, "--steps", "20", "--concurrency", "2", "--server", server.address)
    first = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def some() -> bool:
        assert first.poll() is None, first.communicate()
        return (folder / NAME).is_file() and (folder / NAME).read_bytes().count(b"\n") >= 3

    eventually(some, "some are drawn")
    first.send_signal(end)
    _, told = first.communicate(timeout=SECONDS)
    if end is signal.SIGINT:
        assert (first.returncode, told.splitlines()[-1]) == (130, "text2image: cancelled")
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    known = {name for record in manifest(folder) for name in record["files"]}
    assert 0 < len(manifest(folder)) < 20
    second = run(tmp_path, *words)
    assert second.returncode == 0, second.stderr
    records = manifest(folder)
    assert len({record["key"] for record in records}) == len(records) == 20
    files = [name for record in records for name in record["files"]]
    # All of them, none twice, nothing beside, and those that were known are as they were.
    assert Counter(files) == Counter(path.name for path in folder.glob("*.png"))
    assert len(files) == 30
    for name in known:
        assert (folder / name).stat().st_mtime_ns == before[name]
    for record in records:
        for seed, name in zip(record["seeds"], record["files"], strict=True):
            assert metadata.parse(metadata.read(folder / name)).seed == seed
    third = run(tmp_path, *words)
    assert (third.returncode, third.stdout) == (0, "")


def test_alone_the_same_pictures_are_drawn_and_prompts_come_by_standard_input(
    server: Server, tmp_path: Path
) -> None:
    words = ("batch", "-", "--seeds", "1-2", *CHEAP, "--out")
    given = {"input": "a fox\n# not this\na cat\n", "cwd": tmp_path, "capture_output": True}
    drawn: dict[str, dict[str, Path]] = {}
    for place, more in (("there", ("--server", server.address)), ("here", ("--local",))):
        done = subprocess.run(
            command(*words, place, *more),
            env=environment(tmp_path),
            text=True,
            timeout=SECONDS,
            check=False,
            **given,
        )
        assert done.returncode == 0, done.stderr
        drawn[place] = {Path(path).name: tmp_path / path for path in done.stdout.splitlines()}
    assert drawn["there"].keys() == drawn["here"].keys()
    assert len(drawn["here"]) == 4
    for name, path in drawn["here"].items():
        assert_same(Image.open(path), Image.open(drawn["there"][name]))


def test_what_is_wrong_is_told_before_anything_is_drawn(server: Server, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("prompt,steps\na fox,4\na cat,9000\n")
    done = run(tmp_path, *command("batch", "bad.csv", "--out", "out", "--server", server.address))
    assert done.returncode == 2
    assert done.stderr.startswith("text2image: line 3: steps is 9000")
    assert not (tmp_path / "out").exists()
    missing = run(tmp_path, *command("batch", "none.csv", "--out", "out"))
    assert (missing.returncode, missing.stderr) == (
        1,
        f"text2image: none.csv: {os.strerror(2)}\n",
    )
