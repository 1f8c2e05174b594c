"""The command draws on a real server and with a real engine, and what a starting server tells is true."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.e2e.harness import ROOT, Server, eventually, free_port
from tests.e2e.test_pictures import assert_same
from text2image.gateway import metadata

LONG = 150
# Generous: loading a model takes seconds on an idle machine, and tests may share theirs.
SECONDS = 240


def environment(folder: Path, **settings: str) -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "GRPC_PORT": str(free_port()),
        **settings,
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "text2image", *arguments]


def run(folder: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=folder,
        env=environment(folder, **settings),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_the_server_draws_if_there_is_one_and_otherwise_this_process_the_same(
    server: Server, tmp_path: Path
) -> None:
    fields = ("a red fox", "--steps", "4", "--seed", "11", "--size", "96x64")
    there = run(tmp_path, *command(*fields), GRPC_PORT=str(server.grpc_port))
    here = run(tmp_path, *command(*fields, "--output", "here/"))
    assert (there.returncode, here.returncode) == (0, 0), there.stderr + here.stderr
    assert f"on the server at {server.address}" in there.stderr
    assert "this process draws" in here.stderr
    assert "loading embedded" in here.stderr
    one, other = (Image.open(tmp_path / done.stdout.removesuffix("\n")) for done in (there, here))
    assert one.size == (96, 64)
    assert one.text[metadata.CHUNK] == other.text[metadata.CHUNK]
    assert metadata.parse(one.text[metadata.CHUNK]).seed == 11
    assert_same(one, other)


def test_no_torch_is_loaded_where_a_server_draws(server: Server, tmp_path: Path) -> None:
    words = [sys.executable, "-X", "importtime", *command("fox", "--steps", "1")[1:]]
    done = run(tmp_path, *words, "--server", server.address)
    assert done.returncode == 0, done.stderr
    assert "text2image.client" in done.stderr
    assert "| torch" not in done.stderr


def test_many_pictures_are_many_paths(server: Server, tmp_path: Path) -> None:
    done = run(tmp_path, *command("fox", "--steps", "2", "-n", "3", "--server", server.address))
    paths = done.stdout.splitlines()
    assert len(set(paths)) == 3
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*.png")} == set(paths)


def test_what_the_server_refuses_is_one_line(server: Server, tmp_path: Path) -> None:
    words = ("fox", "--quiet", "--server", server.address)
    for bad, status, said in (
        (("--width", "1024"), 2, "--width: is 1024 pixels; embedded draws between 64 and 256"),
        (("--steps", str(LONG), "--timeout", "0.05"), 1, "the deadline"),
    ):
        done = run(tmp_path, *command(*words, *bad))
        assert done.returncode == status
        assert said in done.stderr
        assert done.stderr.startswith("text2image: ")
        assert done.stderr.count("\n") == 1
        assert not done.stdout


def test_ctrl_c_ends_the_command_and_its_work(server: Server, tmp_path: Path) -> None:
    drawing = subprocess.Popen(
        command("fox", "--steps", str(LONG), "--server", server.address),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with server.engine() as engine:
        before = engine.status()

        def in_flight() -> bool:
            assert drawing.poll() is None, drawing.communicate()
            return engine.status().active > 0

        eventually(in_flight, "it is in flight")
    drawing.send_signal(signal.SIGINT)
    out, told = drawing.communicate(timeout=SECONDS)
    assert drawing.returncode == 130, told
    assert not out
    assert told.splitlines()[-1] == "text2image: cancelled"
    server.wait_for(
        lambda status: status.counters.cancelled == before.counters.cancelled + 1,
        "the work has ended with it",
    )


def test_a_reader_that_has_left_is_no_traceback(server: Server, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command("fox", "--steps", "1", "--quiet", "--server", server.address),
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, *command("fox", "--local", "--quiet"), T2I_MODEL="/nowhere/sd")
    assert done.returncode == 1
    assert "T2I_MODEL=/nowhere/sd: there is no model_index.json" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_server_tells_once_that_it_is_ready_and_what_it_tells_works(
    server: Server, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    told = start_server(engine_of=server, T2I_GATEWAY_WORKERS="2")
    met = "runner 0 is ready with"
    eventually(lambda: told.log.count(met) == 2, "both workers have met the runner")
    told.gateways()[0].kill()
    eventually(lambda: told.log.count(met) == 3, "another worker has met it")
    assert told.log.count("Text2Image is ready.") == 1

    block = told.log.partition("Text2Image is ready.\n")[2]
    rows, _, tries = block.partition("Try it:\n")
    assert f"  HTTP      {told.url} " in rows
    assert f"  gRPC      {told.address} " in rows
    assert f"  Pictures  {told.pictures}\n" in rows
    curl, drawing = tries.splitlines()[:2]
    answered = run(tmp_path, *shlex.split(curl))
    assert answered.returncode == 0
    assert '"status_code":200' in (tmp_path / "answer.json").read_text()
    python, *words = shlex.split(drawing)
    drawn = run(tmp_path, str(ROOT / python), *words)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / drawn.stdout.strip()).is_file()
