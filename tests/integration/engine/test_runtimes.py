"""Which runtime executes the networks, and that its pictures are those of any other."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.doubles import make_request
from tests.integration.engine.conftest import (
    DEVICE,
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
)
from tests.integration.engine.pipelines import save_pipeline
from text2image.core.messages import Sampler
from text2image.core.settings import Settings
from text2image.engine.models.contract import Model, OutOfMemory
from text2image.engine.models.loading import load_model, revision_of
from text2image.engine.runtimes import graphs, openvino
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
    ("kind", "sampler", "shipped"),
    [
        ("sd2", Sampler.DDIM, True),
        ("lcm", Sampler.LCM, True),
        ("xl-lcm", Sampler.LCM, False),
    ],
)
def test_a_model_is_converted_once_and_gives_the_picture_that_torch_gives(
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    sampler: Sampler,
    shipped: bool,
) -> None:
    """When it is loaded first, or before it was shipped."""
    monkeypatch.setattr(graphs, "WORTH", 1)
    saved = save_pipeline(kind, tmp_path)
    if shipped:
        revision = revision_of(saved)
        ship(saved)
        assert revision_of(saved) == revision, "what is made of the weights changes no revision"
    folder, told = str(saved), list[str]()
    models: list[Any] = [
        load_model(Settings(model=folder, device="cpu", runtime=runtime), 0, told.append)
        for runtime in ("openvino", "torch")
    ]
    one, other = models
    own = (one.info.width, one.info.height)
    # The last by a graph of its size.
    for width, height in ((136, 72), own, own):
        request = make_request(
            "a cat", steps=3, seed=1, width=width, height=height, sampler=sampler
        )
        assert np.abs(draw_alone(one, request) - draw_alone(other, request)).max() <= TOLERANCE
        one._networks.settle()
    assert one._networks._unet._fixed
    assert sum("converting" in detail for detail in told) == (0 if shipped else 1)
    assert cache.exists() is not shipped
    told.clear()
    load_model(Settings(model=folder, device="cpu", runtime="openvino"), 0, told.append)
    assert not [detail for detail in told if "converting" in detail]


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


@pytest.fixture(scope="module")
def model_with_graphs() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        return with_graphs(patch)


@pytest.fixture
def pieced(model_with_graphs: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One model for all tests, each of which leaves its graphs as they were."""
    networks = model_with_graphs._networks
    monkeypatch.setattr(graphs, "PIECES", (4, 2))
    monkeypatch.setattr(networks._unet, "_fixed", networks._unet._fixed)
    monkeypatch.setattr(networks._room, "limit", networks._room.limit)
    return model_with_graphs


def with_graphs(patch: pytest.MonkeyPatch) -> Any:
    """The embedded model with graphs of fixed sizes for most batches, as after a while of work."""
    patch.setattr(graphs, "WORTH", 1)
    patch.setattr(graphs, "PIECES", (4, 2))
    settings = Settings(model="embedded", device="cpu", runtime="openvino")
    model: Any = load_model(settings, 0, nothing)
    for rows in (4, 2):
        side = model.info.width // model._latent_scale
        model._networks.predict(*inputs(rows, side), None)
        model._networks.settle()
    assert set(model._networks._unet._fixed) == {4, 2}
    return model


def inputs(rows: int, side: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, timesteps and embeddings for the embedded model."""
    generator = torch.Generator().manual_seed(rows)
    latents = torch.randn(rows, 8, side, side, generator=generator)
    embeddings = torch.randn(rows, 24, 192, generator=generator)
    return latents, torch.linspace(1.0, 900.0, rows), embeddings


def test_invariant_1_a_batch_in_pieces_gives_the_pictures_of_one_that_is_whole(
    pieced: Any, embedded: Model
) -> None:
    requests = [
        make_request("a cat", steps=3, seed=seed, guidance_scale=scale, width=width)
        for seed, (scale, width) in enumerate([(3.0, 128), (1.0, 128), (3.0, 128), (3.0, 192)])
    ]
    harness = harness_for(pieced)
    generations = [harness.submit(request) for request in requests]
    harness.finish()
    for request, generation in zip(requests, generations, strict=True):
        (image,) = harness.images(generation)
        assert np.abs(array(image) - draw_alone(embedded, request)).max() <= TOLERANCE


def test_graphs_of_fixed_sizes_take_what_they_have_and_the_open_one_the_rest(pieced: Any) -> None:
    unet = pieced._networks._unet
    parts = [(part.stop - part.start, request) for part, request in unet._parts(11)]
    assert parts == [(4, unet._fixed[4])] * 2 + [(2, unet._fixed[2]), (1, unet._open)]
    unet._fixed = {2: unet._fixed[2]}
    parts = [(part.stop - part.start, request) for part, request in unet._parts(11)]
    assert parts == [(2, unet._fixed[2]), (9, unet._open)]


def test_a_graph_of_a_fixed_size_that_was_not_asked_for_often_or_has_no_memory_is_not_compiled(
    pieced: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = pieced._networks
    held = graphs.held()
    assert held > 0
    monkeypatch.setattr(graphs, "PIECES", (8, 4, 2))
    monkeypatch.setattr(graphs, "WORTH", 3)
    networks.predict(*inputs(8), None)
    networks.settle()
    monkeypatch.setattr(graphs, "WORTH", 1)
    monkeypatch.setattr(networks._room, "limit", graphs.held() + (1 << 20))
    networks.predict(*inputs(8), None)
    networks.settle()
    assert set(networks._unet._fixed) == {4, 2}
    assert graphs.held() == held


def test_a_graph_that_cannot_be_compiled_leaves_the_open_one(
    pieced: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    networks = pieced._networks
    monkeypatch.setattr(graphs, "WORTH", 1)
    monkeypatch.setattr(graphs, "PIECES", (3,))
    nowhere = replace(networks._unet._recipe, path=Path("/nowhere"))
    monkeypatch.setattr(networks._unet, "_recipe", nowhere)
    networks.predict(*inputs(3), None)
    networks.settle()
    assert "no graph of 3 rows" in caplog.text
    assert networks.predict(*inputs(3), None).isfinite().all()


def test_a_model_that_leaves_gives_back_its_graphs_and_the_one_that_is_being_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gc.collect()
    before = graphs.held()
    model = with_graphs(monkeypatch)
    begun, left, compiled = Event(), Event(), graphs.Recipe.compiled
    taken: list[int] = []

    def slow(recipe: graphs.Recipe, rows: int | None = None) -> Any:
        begun.set()
        assert left.wait(60)
        return compiled(recipe, rows)

    monkeypatch.setattr(graphs.Recipe, "compiled", slow)
    monkeypatch.setattr(graphs.Graphs, "take_in", lambda self, rows, made: taken.append(rows))
    monkeypatch.setattr(graphs, "PIECES", (8,))
    model._networks.predict(*inputs(8), None)
    assert begun.wait(60)
    compiling, gone = model._networks._unet._compiling, weakref.ref(model)
    assert graphs.held() > before
    del model
    gc.collect()
    assert gone() is None
    assert graphs.held() == before
    left.set()
    compiling.join()
    assert taken == []


@pytest.mark.parametrize("rows", [4, 3], ids=["fixed", "open"])
def test_an_output_that_openvino_did_not_write_is_a_lack_of_memory(
    pieced: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it happens when an allocation in the middle fails: the call returns, and the output stays as it was."""

    class Silent:
        def set_output_tensor(self, place: int, tensor: object) -> None: ...

        def infer(self, inputs: object, share_inputs: bool) -> None: ...

    unet = pieced._networks._unet
    monkeypatch.setattr(unet, "_open", Silent())
    monkeypatch.setattr(unet, "_fixed", {4: Silent(), 2: unet._fixed[2]})
    with pytest.raises(OutOfMemory):
        pieced._networks.predict(*inputs(rows), None)
