"""How many runners there are: what is set, else one per GPU, and never none."""

from __future__ import annotations

from typing import Any

import pytest

from text2image.core import hardware
from text2image.core.settings import Settings


@pytest.mark.parametrize(("visible", "count"), [("0,1,2", 3), ("GPU-8f2a", 1), ("", 0), ("-1", 0)])
def test_only_visible_gpus_count(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert hardware.gpu_count() == count


@pytest.mark.parametrize(
    ("gpus", "settings", "runners"),
    [
        (0, {}, 1),
        (4, {}, 4),
        (4, {"runner_workers": 2}, 2),
        (0, {"runner_workers": 2}, 2),
        (4, {"device": "cpu"}, 1),
        (4, {"device": "cuda:1"}, 1),
    ],
)
def test_runners(
    monkeypatch: pytest.MonkeyPatch, gpus: int, settings: dict[str, Any], runners: int
) -> None:
    monkeypatch.setattr(hardware, "gpu_count", lambda: gpus)
    assert hardware.runner_count(Settings(**settings)) == runners
