"""Which runtime executes the networks, and that its pictures are those of any other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.doubles import make_request
from tests.integration.engine.conftest import DEVICE, TOLERANCE, draw_alone
from text2image.core.messages import Sampler
from text2image.core.settings import Settings
from text2image.engine.models.contract import OutOfMemory
from text2image.engine.models.loading import load_model, revision_of
from text2image.engine.runtimes import openvino
from text2image.engine.runtimes.choice import runtime_of
from text2image.engine.runtimes.conversion import ship

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="OpenVINO computes on a CPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def nothing(detail: str) -> None:
    """Nobody is told."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what is converted."""
    monkeypatch.setenv("T2I_CACHE_DIR", str(tmp_path))
    return tmp_path / "openvino"


def test_openvino_computes_on_a_cpu_where_it_is_installed_and_torch_everywhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert runtime_of(Settings(), CPU) == "openvino"
    assert runtime_of(Settings(), GPU) == "torch"
    assert runtime_of(Settings(compile=True), CPU) == "compile"
    assert runtime_of(Settings(runtime="torch"), CPU) == "torch"
    with pytest.raises(ValueError, match=r"T2I_RUNTIME=openvino computes on a CPU, .* cuda:0"):
        runtime_of(Settings(runtime="openvino"), GPU)
    monkeypatch.setattr(openvino, "installed", lambda: False)
    assert runtime_of(Settings(), CPU) == "torch"
    with pytest.raises(ValueError, match="pip install openvino"):
        runtime_of(Settings(runtime="openvino"), CPU)


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [
        ("sd2", Sampler.DDIM),
        ("lcm", Sampler.LCM),
        ("xl-lcm", Sampler.LCM),
    ],
)
def test_a_model_is_converted_once_and_gives_the_picture_that_torch_gives(
    pipeline_folder: Callable[[str], Path], cache: Path, kind: str, sampler: Sampler
) -> None:
    folder = str(pipeline_folder(kind))
    told: list[str] = []
    one, other = (
        load_model(Settings(model=folder, device="cpu", runtime=runtime), 0, told.append)
        for runtime in ("openvino", "torch")
    )
    for width, height in ((128, 128), (136, 72)):
        request = make_request(
            "a cat", steps=3, seed=1, width=width, height=height, sampler=sampler
        )
        assert np.abs(draw_alone(one, request) - draw_alone(other, request)).max() <= TOLERANCE
    assert sum("converting" in detail for detail in told) == 1
    told.clear()
    load_model(Settings(model=folder, device="cpu", runtime="openvino"), 0, told.append)
    assert not [detail for detail in told if "converting" in detail]


def test_a_model_that_was_shipped_converted_is_not_converted_again(
    pipeline_folder: Callable[[str], Path], cache: Path
) -> None:
    folder = pipeline_folder("sd1")
    revision = revision_of(folder)
    ship(folder)
    assert revision_of(folder) == revision, "what is made of the weights changes no revision"
    told: list[str] = []
    load_model(Settings(model=str(folder), device="cpu", runtime="openvino"), 0, told.append)
    assert not [detail for detail in told if "converting" in detail]
    assert not cache.exists()


def test_what_openvino_cannot_execute_is_left_to_torch_unless_it_was_named(
    pipeline_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Nowhere to put it: the folder's place is a file.
    (tmp_path / "file").touch()
    monkeypatch.setenv("T2I_CACHE_DIR", str(tmp_path / "file"))
    folder = str(pipeline_folder("turbo"))
    model = load_model(Settings(model=folder, device="cpu"), 0, nothing)
    assert "torch does" in caplog.text
    assert draw_alone(model, make_request("a cat", steps=1)).shape == (128, 128, 3)
    with pytest.raises(ValueError, match=r"T2I_RUNTIME=openvino: .*file"):
        load_model(Settings(model=folder, device="cpu", runtime="openvino"), 0, nothing)


def test_a_model_is_not_converted_where_memory_is_short(
    pipeline_folder: Callable[[str], Path],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Of what asks for it before a conversion, since the model itself has to fit.
    monkeypatch.setattr(openvino, "HostMemory", lambda: SimpleNamespace(free=lambda: 100_000))
    told: list[str] = []
    load_model(Settings(model=str(pipeline_folder("xl")), device="cpu"), 0, told.append)
    assert re.search(
        r"torch does: converting it takes \d+\.\d GB of memory, and 0.0 GB", caplog.text
    )
    assert not [detail for detail in told if "converting" in detail]


def test_an_output_that_openvino_did_not_write_is_a_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it happens when an allocation in the middle fails: the call returns, and the output stays as it was."""
    model = load_model(Settings(model="embedded", device="cpu", runtime="openvino"), 0, nothing)

    class Silent:
        def set_output_tensor(self, tensor: object) -> None: ...

        def infer(self, inputs: object, share_inputs: bool) -> None: ...

    monkeypatch.setattr(model._networks, "_unet", Silent())  # type: ignore[attr-defined]
    latents = torch.zeros(2, 8, 16, 16)
    with pytest.raises(OutOfMemory):
        model._networks.predict(latents, torch.ones(2), torch.zeros(2, 24, 192), None)  # type: ignore[attr-defined]
