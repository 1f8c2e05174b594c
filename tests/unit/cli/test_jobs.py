"""The command hands batches to a server as jobs, fetches each picture once, and finds its jobs again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.harness import eventually
from tests.jobs import PROMPT_THAT_FAILS, JobServer, job_server_beside
from text2image.cli.main import main
from text2image.cli.manifest import NAME
from text2image.client import Client
from text2image.jobs.records import JobState

KEY = "t2i_ann"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    monkeypatch.setenv("T2I_API_KEY", KEY)
    with job_server_beside(tmp_path / "server") as server:
        yield server


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a fox\nan owl\n")
    return path


def batch(prompts: Path, out: Path, server: JobServer, *more: str) -> int:
    words = ["batch", str(prompts), "--out", str(out), "--job", "--server", server.address]
    return main([*words, *more])


def jobs(server: JobServer, *words: str) -> int:
    return main(["jobs", *words, "--server", server.address])


def test_a_batch_is_drawn_as_a_job_and_each_picture_fetched_once(
    server: JobServer, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert batch(prompts, out, server, "--seeds", "1-2", "--sheet") == 0
    paths = capsys.readouterr().out.splitlines()
    assert len(paths) == 4
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in paths)
    assert (out / "sheet.png").exists()
    Path(paths[1]).unlink()
    assert batch(prompts, out, server, "--seeds", "1-2") == 0
    assert capsys.readouterr().out.splitlines() == [paths[1]]
    with Client(server.address) as client:
        (job,) = client.jobs.list().jobs
    assert (job.state, job.counts.succeeded, job.name) == (JobState.COMPLETED, 4, "out")
    # Another folder is asked for other pictures.
    assert batch(prompts, tmp_path / "other", server, "--seeds", "1-2") == 0
    with Client(server.address) as client:
        assert len(client.jobs.list().jobs) == 2


def test_what_failed_is_told_and_tried_again(
    server: JobServer, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts.write_text(f"a fox\n{PROMPT_THAT_FAILS}\n")
    for _ in range(2):
        assert batch(prompts, tmp_path / "out", server) == 1
        told = capsys.readouterr().err
        assert "request 2: prompt: is to fail" in told
        assert "1 of 2 requests failed" in told
    with Client(server.address) as client:
        (job,) = client.jobs.list().jobs
        _, failed = client.jobs.results(job.id).items
    assert failed.attempts == 2
    records = [json.loads(line) for line in (tmp_path / "out" / NAME).read_text().splitlines()]
    assert [each["status"] for each in records] == ["drawn", "failed", "failed"]


def test_more_than_one_job_may_have_is_several(
    server: JobServer, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("text2image.cli.jobs._MOST", 3)
    assert batch(prompts, tmp_path / "out", server, "--seeds", "1-2") == 0
    with Client(server.address) as client:
        assert [job.counts.total for job in client.jobs.list().jobs] == [1, 3]
    assert len(list((tmp_path / "out").glob("0000[1-4]_*.png"))) == 4


def test_jobs_are_listed_paused_ended_fetched_and_removed(
    server: JobServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(server.address) as client:
        job = client.jobs.submit([{"prompt": "a fox"}], name="foxes", paused=True)
        assert jobs(server, "list") == 0
        assert f"{job.id}  paused" in capsys.readouterr().out
        assert jobs(server, "resume", job.id) == 0
        assert list(client.jobs.watch(job.id))[-1].state is JobState.COMPLETED
        capsys.readouterr()
        for count in (1, 0):
            assert jobs(server, "fetch", job.id, "--out", str(tmp_path / "out")) == 0
            assert len(capsys.readouterr().out.splitlines()) == count
        assert jobs(server, "show", job.id) == 0
        assert "name: foxes" in capsys.readouterr().out
        assert jobs(server, "delete", job.id) == 0
        assert jobs(server, "show", job.id) == 1
        assert job.id in capsys.readouterr().err


def test_a_cancelled_job_is_not_begun_again_unasked(
    server: JobServer, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.gate.clear()
    with Client(server.address) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(batch, prompts, tmp_path / "out", server)
        (job,) = eventually(lambda: client.jobs.list().jobs, "the job is taken in")
        client.jobs.cancel(job.id)
        assert first.result() == 1
    assert batch(prompts, tmp_path / "out", server) == 1
    assert f"{job.id} was cancelled" in capsys.readouterr().err
    assert jobs(server, "delete", job.id) == 0
    server.gate.set()
    assert batch(prompts, tmp_path / "out", server) == 0


@pytest.mark.parametrize("other", ["--local", "--timeout=3"])
def test_a_job_excludes_what_only_this_process_could_do(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str
) -> None:
    words = ["batch", str(prompts), "--out", str(tmp_path / "out"), "--job", other]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "exclude each other" in capsys.readouterr().err


def test_without_a_server_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "list", "--server", "localhost:1"]) == 1
    assert "no server listens at localhost:1" in capsys.readouterr().err
