"""What a server tells its operator: everything that is needed to use it, and each thing once."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.samples import MODEL
from text2image.core.messages import State, Status
from text2image.core.settings import Settings
from text2image.ops.readiness import announce, block_of, start_afresh

READY = Status(state=State.READY)


async def told_of(folder: Path, *statuses: Status) -> list[str]:
    """What a gateway worker tells that sees these statuses."""

    async def follow() -> AsyncGenerator[Status, None]:
        for status in statuses:
            yield status

    told: list[str] = []
    await announce(follow(), folder, lambda: "ready\n", told.append)
    return told


def loading(detail: str) -> Status:
    return Status(state=State.LOADING, detail=f"runner 0: {detail}")


async def test_a_ready_server_is_told_of_once_whoever_sees_it(tmp_path: Path) -> None:
    """By one of the workers, and not again by the one that takes the place of a dead one."""
    assert await told_of(tmp_path, loading("starting"), READY) == ["ready\n"]
    assert await told_of(tmp_path, loading("starting"), READY) == []


async def test_the_next_server_is_told_of_again(tmp_path: Path) -> None:
    settings = Settings(runtime_dir=tmp_path / "run")
    for _ in range(2):
        start_afresh(settings)
        assert await told_of(tmp_path / "run", READY) == ["ready\n"]


async def test_each_reason_why_no_model_loads_is_told_once(tmp_path: Path) -> None:
    failed = Status(state=State.FAILED, detail="runner 0: T2I_MODEL=sdd: is no model")
    other = Status(state=State.FAILED, detail="runner 0: the hub cannot be reached")
    told = await told_of(tmp_path, failed, loading("importing torch"), failed, other, READY)
    assert [line.partition(". ")[0] for line in told] == [
        "text2image: runner 0: T2I_MODEL=sdd: is no model",
        "text2image: runner 0: the hub cannot be reached",
        "ready\n",
    ]
    assert await told_of(tmp_path, failed, other) == []


async def test_a_runner_that_dies_while_it_loads_is_told_of(tmp_path: Path) -> None:
    """As one does that the kernel ends for its memory; it cannot say so itself."""
    life = [loading("starting"), loading("importing torch"), loading("loading sdxl on cpu")]
    assert await told_of(tmp_path, *life) == []
    (told,) = await told_of(tmp_path, *life, *life, *life)
    assert "memory" in told
    assert "T2I_MODEL" in told


async def test_nothing_is_told_of_a_server_that_stops_before_it_is_ready(tmp_path: Path) -> None:
    assert await told_of(tmp_path, Status(state=State.DRAINING), READY) == []


def test_a_folder_that_others_could_use_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    with pytest.raises(SystemExit, match=r"^text2image: .*/run is open to other users.*$"):
        start_afresh(Settings(runtime_dir=tmp_path / "run"))


def test_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"^text2image: .*/file/run: .*T2I_RUNTIME_DIR.*$"):
        start_afresh(Settings(runtime_dir=tmp_path / "file" / "run"))


def command(block: str, word: str) -> list[str]:
    """The words of the command in a block that holds `word`."""
    (line,) = (line for line in block.splitlines() if line.startswith("  ") and word in line)
    return shlex.split(line)


def test_the_block_tells_what_draws_and_where_everything_is(tmp_path: Path) -> None:
    settings = Settings(GRPC_PORT=50052, output_dir=tmp_path, runner_workers=2)
    block = block_of(settings, MODEL, "127.0.0.1", 3001)
    for part in (
        MODEL.id,
        MODEL.revision,
        "cpu, float32",
        "2 runners",
        "http://127.0.0.1:3001/metrics",
        "127.0.0.1:50052",
        str(tmp_path),
    ):
        assert part in block
    assert all(len(line) < 150 for line in block.splitlines())


def test_the_block_names_the_catalogue_if_there_is_one(tmp_path: Path) -> None:
    assert "Models" not in block_of(Settings(), MODEL, "127.0.0.1", 3000)
    settings = Settings(models=str(tmp_path))
    assert f"those of {tmp_path} too" in block_of(settings, MODEL, "127.0.0.1", 3000)


def test_the_block_says_where_the_page_is_or_how_to_show_it() -> None:
    assert "`make ui` shows it" in block_of(Settings(), MODEL, "127.0.0.1", 3000)
    shown = block_of(Settings(HOST="0.0.0.0", page_port=8501), MODEL, "0.0.0.0", 3000)
    assert "http://127.0.0.1:8501" in shown


def test_the_block_says_how_to_try_it() -> None:
    block = block_of(Settings(GRPC_PORT=50052), MODEL, "0.0.0.0", 3001)
    curl = command(block, "curl")
    assert "http://127.0.0.1:3001/generate" in curl
    assert set(json.loads(curl[curl.index("-d") + 1])) == {"text"}
    drawing = command(block, "-m text2image")
    assert drawing[1:5] == ["-m", "text2image", "--server", "127.0.0.1:50052"]
    assert not any("Authorization" in word for word in curl)


def test_the_known_port_need_not_be_named() -> None:
    block = block_of(Settings(HOST="127.0.0.1", GRPC_PORT=50051), MODEL, "127.0.0.1", 3000)
    assert "--server" not in block


def test_the_block_says_what_guards_the_server_and_what_does_not() -> None:
    plain = block_of(Settings(), MODEL, "127.0.0.1", 3000)
    for setting in ("no API keys (T2I_KEYS_FILE)", "no TLS (T2I_TLS_CERT)", "(T2I_RATE_LIMIT)"):
        assert setting in plain
    settings = Settings(
        keys_file="keys.json",
        tls_cert="cert.pem",
        tls_key="key.pem",
        rate_limit="600/minute",
        save_images=False,
    )
    guarded = block_of(settings, MODEL, "::1", 3000)
    assert "API keys of keys.json, TLS" in guarded
    assert "600/minute" in guarded
    assert "https://[::1]:3000/generate" in guarded
    assert "Authorization: Bearer $T2I_API_KEY" in command(guarded, "curl")
    assert "not saved" in guarded
