"""Weights are read from the disk before a runner asks for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import eventually
from text2image.core.settings import Settings
from text2image.engine.readahead import advise, read_ahead, wanted

MIB = 1 << 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet/weights.safetensors").write_bytes(os.urandom(8 * MIB))
    (folder / "unet/config.json").write_text("{}")
    return folder


def is_in_memory(path: Path) -> bool:
    """Whether all of a file can be read without the disk. To try it would have the kernel read on."""
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    held = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(held) >= path.stat().st_size


def forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def test_weights_are_in_memory_before_anybody_loads_them(model: Path) -> None:
    weights = model / "unet/weights.safetensors"
    forget(weights)
    if is_in_memory(weights):
        pytest.skip("this file system keeps all files in memory")
    thread = read_ahead(Settings(model=str(model)))
    assert thread is not None
    eventually(lambda: is_in_memory(weights), "the weights were read", 30)


def test_libraries_come_before_weights_and_nothing_else(model: Path) -> None:
    files = list(wanted(Settings(model=str(model))))
    assert "libtorch_cpu.so" in {path.name for path in files[:-1]}
    assert files[-1] == model / "unet/weights.safetensors"
    assert not [path for path in files if path.suffix == ".json"]


def test_what_is_not_there_is_left_for_loading_to_tell(tmp_path: Path) -> None:
    advise([tmp_path / "nothing"])
    assert list(wanted(Settings(model="nobody/nothing"))) == list(wanted(Settings(model="/none")))


def test_torch_is_not_imported_for_it() -> None:
    script = (
        "import sys; from text2image.core.settings import Settings;"
        "from text2image.engine.readahead import wanted; list(wanted(Settings()));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
