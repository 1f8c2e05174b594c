"""Device choices and errors, with doubles for the devices that are not here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from text2image.engine import devices
from text2image.engine.models.contract import DeviceLost, OutOfMemory


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_the_best_device_is_taken_and_gpus_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(devices.pick_device(name, index)) for index in (0, 1, 2)] == [
        "cuda:0",
        "cuda:1",
        "cuda:0",
    ]


def test_a_device_that_is_not_here_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="T2I_DEVICE=cuda"):
        devices.pick_device("cuda")


@pytest.mark.parametrize(
    ("device", "bf16", "expected"),
    [
        ("cpu", False, torch.float32),
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("mps", False, torch.float16),
    ],
)
def test_precision_follows_the_device(
    monkeypatch: pytest.MonkeyPatch, device: str, bf16: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert devices.pick_dtype(torch.device(device), "auto") is expected
    assert devices.pick_dtype(torch.device(device), "float16") is torch.float16


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OutOfMemory),
        (RuntimeError("Exception from src/inference: std::bad_alloc"), OutOfMemory),
        (RuntimeError("could not create a primitive"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceLost),
        (RuntimeError("shapes do not match"), RuntimeError),
    ],
)
def test_torch_errors_are_told_apart(error: Exception, meaning: type[Exception]) -> None:
    with pytest.raises(meaning), devices.device_errors():
        raise error


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("100000 100000", 1), ("max 100000", None), ("50000 100000", 1), ("", None)],
)
def test_threads_follow_the_cores_that_the_process_may_use(
    tmp_path: Path, quota: str, cores: int | None
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    unlimited = devices.usable_cores(tmp_path / "missing")
    assert devices.usable_cores(file) == (cores or unlimited)


def test_on_a_card_what_torch_keeps_cached_is_free_for_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = {"memory_reserved": 700, "memory_allocated": 200, "max_memory_allocated": 550}
    for name in figures:
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: figures[name])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    memory = devices.memory_of(torch.device("cuda", 0))
    assert memory is not None
    assert memory.restart() == 0
    assert memory.free() == 1500
    assert memory.used() == 700
    assert memory.peak() == 350, "the weights are no step's"
    figures["memory_allocated"] = 300
    assert memory.restart() == 100, "what has been kept since the first start"


def test_a_device_whose_memory_cannot_be_read_has_none() -> None:
    assert devices.memory_of(torch.device("mps")) is None
