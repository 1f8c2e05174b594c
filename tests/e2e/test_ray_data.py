"""The example with Ray Data, on a Ray of this machine: killed half-way and resumed, it has one row for each prompt."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from tests.e2e.harness import ROOT, WAIT_SECONDS, Server

pytest.importorskip("ray", reason="needs requirements/ray.txt")
pytestmark = pytest.mark.ray
EXAMPLE = ROOT / "examples" / "ray_data.py"
ROWS, SHARD_ROWS = 200, 10
BUCKET = "drawn"
# One that no model draws: an error in its own row, and no reason to stop.
EMPTY = 150
SMALL = (
    "--set",
    "steps=1",
    "--set",
    "width=128",
    "--set",
    "height=128",
    "--set",
    "guidance_scale=1",
)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield boto3.resource("s3").create_bucket(Bucket=BUCKET)
    server.stop()


def write_prompts(folder: Path, rows: int = ROWS) -> Path:
    """Two files, whose row groups are no shards."""
    (folder / "more").mkdir(parents=True)
    ids = list(range(rows))
    table = pa.table(
        {
            "id": [f"row-{each}" for each in ids],
            "prompt": ["" if each == EMPTY else f"a fox, number {each}" for each in ids],
            "topic": ["animals"] * rows,
        }
    )
    half = rows // 2
    pq.write_table(table.slice(0, half), folder / "a.parquet", row_group_size=7)
    pq.write_table(table.slice(half), folder / "more" / "b.parquet", row_group_size=30)
    return folder


@contextmanager
def running(server: Server, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The example in a process; with all that it started it is killed at the end, at once."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""}
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), *map(str, words), "--server", server.address],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        family = []
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            family = [parent, *parent.children(recursive=True)]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(WAIT_SECONDS)


def drawn(bucket: Any, folder: str) -> dict[str, Any]:
    """What lies in a folder of the bucket, by name."""
    return {each.key: each.last_modified for each in bucket.objects.filter(Prefix=f"{folder}/")}


def content(bucket: Any, name: str) -> io.BytesIO:
    return io.BytesIO(bucket.Object(name).get()["Body"].read())


def test_killed_half_way_and_resumed_it_has_one_row_for_each_prompt(
    server: Server, bucket: Any, tmp_path: Path
) -> None:
    words = [write_prompts(tmp_path / "prompts"), f"s3://{BUCKET}/run", *SMALL]
    words += ["--shard-rows", str(SHARD_ROWS), "--actors", "2", "--in-flight", "4"]
    with running(server, *words) as process:
        assert process.stdout
        assert next(process.stdout) == f"{ROWS} rows in {ROWS // SHARD_ROWS} shards are left\n"
        for _ in range(5):
            next(process.stdout)
    before = drawn(bucket, "run/results")
    assert 5 <= len(before) < ROWS // SHARD_ROWS

    with running(server, *words) as process:
        told, _ = process.communicate(timeout=WAIT_SECONDS)
    left = ROWS // SHARD_ROWS - len(before)
    assert told.splitlines()[0] == f"{left * SHARD_ROWS} rows in {left} shards are left"
    assert process.returncode == 1, "a row has no picture"
    after = drawn(bucket, "run/results")
    assert before.items() <= after.items(), "what was finished is left alone"

    rows = [row for name in after for row in pq.read_table(content(bucket, name)).to_pylist()]
    assert sorted(row["id"] for row in rows) == sorted(f"row-{each}" for each in range(ROWS))
    (failed,) = (row for row in rows if row["error"])
    assert (failed["id"], failed["picture"]) == (f"row-{EMPTY}", None)
    assert "prompt" in failed["message"]
    names = {row["picture"].removeprefix(f"s3://{BUCKET}/") for row in rows if row["picture"]}
    assert len(names) == ROWS - 1
    assert names == set(drawn(bucket, "run/pictures"))
    for row in rows[:3]:
        picture = Image.open(content(bucket, row["picture"].removeprefix(f"s3://{BUCKET}/")))
        assert row["prompt"] in picture.text["parameters"]
        assert f"Seed: {row['seed']}," in picture.text["parameters"]
        assert row["topic"] == "animals"
    with running(server, *words) as process:
        assert process.communicate(timeout=WAIT_SECONDS)[0] == "0 rows in 0 shards are left\n"


def test_failed_rows_are_drawn_again_alone_and_the_same_row_has_the_same_seed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actor by itself, into a folder; the model is first called what none is called."""
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    import ray_data

    prompts, output = write_prompts(tmp_path / "prompts", 4), tmp_path / "drawn"
    words = [str(prompts), str(output), "--server", server.address, "--shard-rows", "2", *SMALL]
    table = pq.read_table(prompts / "a.parquet")
    pq.write_table(table.append_column("model", pa.array([None, "nobody"])), prompts / "a.parquet")

    options = ray_data.parsed(words)
    todo = ray_data.todo_of(options)
    assert [shard["name"] for shard in todo] == ["a/000000000", "more/b/000000000"]
    shards = [{"shard": [json.dumps(shard)]} for shard in todo]
    actor = ray_data.Draw(options)
    assert [actor(shard)["failed"] for shard in shards] == [[1], [0]]
    first = pq.read_table(output / "results" / "a" / "000000000.parquet").to_pylist()
    assert [row["error"] for row in first] == [None, "MODEL_NOT_FOUND"]
    kept = Path(first[0]["picture"])
    drawn_at = kept.stat().st_mtime_ns

    assert ray_data.todo_of(options) == []
    again = ray_data.parsed([*words, "--retry-failed"])
    assert ray_data.todo_of(again) == todo[:1]
    assert ray_data.Draw(again)(shards[0])["failed"] == [1]
    second = pq.read_table(output / "results" / "a" / "000000000.parquet").to_pylist()
    assert [row["seed"] for row in second] == [row["seed"] for row in first]
    assert kept.stat().st_mtime_ns == drawn_at

    with pytest.raises(SystemExit, match="another output"):
        ray_data.todo_of(ray_data.parsed([*words, "--seed", "5"]))
