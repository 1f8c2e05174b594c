"""Weights in fewer bits: near the model's own pictures, told apart from them, and refused where they cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from tests import loras
from tests.doubles import make_request
from tests.integration.engine.conftest import (
    DEVICE,
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
)
from tests.integration.engine.general_pipelines import save
from text2image.core.loras import chosen
from text2image.core.messages import LoraWeight
from text2image.core.settings import Settings
from text2image.engine.models.inspection import inspect_model
from text2image.engine.models.loading import EMBEDDED_PATH, FAMILIES, load_model
from text2image.engine.preflight.check import check
from text2image.engine.preflight.files import Files
from text2image.engine.preflight.networks import build_networks
from text2image.engine.runtimes import quantize
from text2image.engine.runtimes.choice import load_pipeline, saving_of
from text2image.engine.runtimes.quantize import Saving

CPU, CUDA, FP32 = torch.device("cpu"), torch.device("cuda", 0), torch.float32
# By kind and runtime: how far its pictures of few steps may be from the model's own, in the mean, of 255.
NEAR = {"int8:openvino": 4, "int8:torch": 4, "fp8:torch": 8, "nf4:torch": 20}

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="these weights are a CPU's")


def settings_of(choice: str, model: str = "embedded") -> Settings:
    kind, _, runtime = choice.partition(":")
    return settings_for(model, runtime).model_copy(update={"quantize": kind})


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is compressed."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session", params=NEAR)
def quantized(request: pytest.FixtureRequest, cache: Path) -> tuple[str, Any]:
    """The embedded model by its kind of weights and what executes them."""
    settings = settings_of(request.param).model_copy(update={"cache_dir": cache})
    return request.param, load_model(settings, 0, lambda detail: None)


@pytest.fixture(scope="session")
def whole() -> Any:
    return load_model(settings_for("embedded"), 0, lambda detail: None)


def test_pictures_are_near_the_models_own_and_are_told_apart_from_them(
    quantized: tuple[str, Any], whole: Any
) -> None:
    choice, model = quantized
    request = make_request("a red apple", steps=4, guidance_scale=3.0)
    differs = np.abs(draw_alone(model, request) - draw_alone(whole, request)).mean()
    assert 0 < differs < NEAR[choice]
    assert model.info.quantization == choice.partition(":")[0]
    assert model.info.revision != whole.info.revision
    # A catalogue tells the same of it before it is loaded.
    assert inspect_model(settings_of(choice), 0)[0] == model.info


def test_invariant_1_a_quantized_models_picture_depends_on_its_request_alone(
    quantized: tuple[str, Any],
) -> None:
    _, model = quantized
    requests = [make_request("a cat", steps=1 + each, seed=each) for each in range(2)]
    harness = harness_for(model)
    together = [harness.submit(each) for each in requests]
    harness.finish()
    for request, generation in zip(requests, together, strict=True):
        (image,) = harness.images(generation)
        assert np.abs(array(image) - draw_alone(model, request)).max() <= TOLERANCE


def test_each_kind_and_runtime_has_a_revision_of_its_own() -> None:
    kinds = [Saving(each.partition(":")[0], runtime=each.partition(":")[2]) for each in NEAR]
    assert len({each.revised("0") for each in (*kinds, Saving())}) == len(NEAR) + 1
    assert Saving(offload="model").revised("0") == "0", "the same pictures"


@pytest.mark.parametrize("kind", quantize.PACKAGES)
def test_the_bytes_that_are_told_before_are_those_that_the_weights_take(kind: str) -> None:
    pipeline = load_pipeline(EMBEDDED_PATH, FP32)
    quantize.quantize(pipeline, kind)
    taken = 0
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        for each in part.parameters():
            state = getattr(each, "quant_state", None)
            inner = [getattr(each, name) for name in getattr(each, "tensor_data_names", ())]
            taken += sum(one.nbytes for one in inner) if inner else each.nbytes
            taken += state.absmax.nbytes if state else 0
    told = inspect_model(settings_of(f"{kind}:torch"), 0)[1]
    assert told == pytest.approx(taken, rel=0.02)
    assert told < 0.85 * inspect_model(settings_for("embedded"), 0)[1]


def test_matrices_that_openvino_reads_are_compressed_once_and_take_a_quarter(
    cache: Path, quantized: tuple[str, Any]
) -> None:
    choice, _ = quantized
    if choice != "int8:openvino":
        pytest.skip("of OpenVINO alone")
    (folder,) = (cache / "openvino").glob("*-int8-*/")
    (plain,) = (EMBEDDED_PATH / "openvino").iterdir()
    sizes = [(each / "unet.bin").stat().st_size for each in (folder, plain)]
    with_torch = load_pipeline(EMBEDDED_PATH, FP32).unet
    matrices = sum(each.weight.nbytes for each in quantize.layers_of(with_torch, "int8"))
    assert sizes[1] - sizes[0] == pytest.approx(0.75 * matrices, rel=0.05)
    settings = settings_of(choice).model_copy(update={"cache_dir": cache})
    before = (folder / "unet.bin").stat().st_mtime_ns
    load_model(settings, 0, lambda detail: None)
    assert (folder / "unet.bin").stat().st_mtime_ns == before


def test_what_overflows_in_less_than_fp32_is_not_quantized() -> None:
    class Kept(nn.Module):
        _keep_in_fp32_modules = ("wo",)

        def __init__(self) -> None:
            super().__init__()
            self.wi, self.wo = nn.Linear(8, 8), nn.Linear(8, 8)

    network = Kept()
    assert list(quantize.layers_of(network, "int8")) == [network.wi]


@pytest.mark.parametrize("kind", ["sd3", "general"])
def test_transformers_and_their_text_encoders_are_quantized(
    kind: str, pipeline_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = _pipeline_of(kind, pipeline_folder, tmp_path)
    model = load_model(settings_of("int8:torch", str(folder)), 0, lambda detail: None)
    plain = load_model(settings_for(str(folder)), 0, lambda detail: None)
    side = model.info.width
    request = make_request(
        "a cat",
        steps=2,
        width=side,
        height=side,
        guidance_scale=plain.info.guidance_scale,
        sampler=plain.info.sampler,
    )
    differs = np.abs(draw_alone(model, request) - draw_alone(plain, request)).mean()
    assert 0 < differs < 10
    assert inspect_model(settings_of("int8:torch", str(folder)), 0)[0] == model.info


@pytest.mark.parametrize("kind", ["sd1", "sd3"])
def test_an_adapter_changes_quantized_weights_as_it_changes_whole_ones(
    kind: str, pipeline_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="diffusers adds adapters by PEFT")
    folder = pipeline_folder(kind)
    pipeline = DiffusionPipeline.from_pretrained(folder)
    parts = (*loras.PARTS, *loras.FLOW_PARTS)
    loras.save(tmp_path, "ink", loras.invent(pipeline, rank=4, seed=1, parts=parts))
    drawn: dict[tuple[str, bool], np.ndarray] = {}
    for quantized in ("int8:torch", ":torch"):
        settings = settings_of(quantized, str(folder)).model_copy(update={"loras": tmp_path})
        model = load_model(settings, 0, lambda detail: None)
        request = make_request("a cat", steps=2, width=64, height=64, sampler=model.info.sampler)
        inked = chosen([LoraWeight("ink")], model.info)
        model.adapters.put(inked[0], model.adapters.read(inked[0]))
        drawn[quantized, False] = draw_alone(model, request)
        drawn[quantized, True] = draw_alone(model, replace(request, loras=inked))
        # Leaves nothing behind.
        again = draw_alone(model, request)
        assert np.abs(again - drawn[quantized, False]).max() <= TOLERANCE
    changed = np.abs(drawn[":torch", True] - drawn[":torch", False]).mean()
    differs = np.abs(drawn["int8:torch", True] - drawn[":torch", True]).mean()
    assert 0 < differs < changed / 4


def _pipeline_of(kind: str, pipeline_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    if kind != "general":
        return pipeline_folder(kind)
    return save("PixArtAlphaPipeline", tmp_path)


def told_of(settings: Settings, device: torch.device = CPU) -> list[str]:
    return [str(each) for each in check(EMBEDDED_PATH, FAMILIES, device, FP32, settings=settings)]


def test_what_cannot_be_computed_with_is_refused_before_loading_with_what_would_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tried(kind: str, device: torch.device, dtype: torch.dtype) -> str | None:
        return None if kind == "int8" else "no kernel"

    wanted = Saving("nf4")
    reason = quantize.refusal(wanted, CUDA, FP32, tried)
    assert (
        reason == "nf4 cannot be computed with on cuda:0 (no kernel); what works here: int8, none"
    )
    assert quantize.refusal(Saving("int8"), CUDA, FP32, tried) is None

    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    (told,) = told_of(settings_of("fp8:torch"))
    assert told.startswith("T2I_QUANTIZE: fp8 cannot be computed with on cpu (torchao is not ")
    assert "pip install -r requirements/quantize.txt); what works here: none" in told


def test_a_kind_that_openvino_has_not_is_left_to_torch_or_refused() -> None:
    assert saving_of(Settings(quantize="fp8"), CPU, by_itself=False).runtime == "torch"
    assert saving_of(Settings(quantize="int8"), CPU, by_itself=False).runtime == "openvino"
    assert saving_of(Settings(quantize="int8"), CPU, by_itself=True).runtime == "torch"
    with pytest.raises(ValueError, match=r"T2I_QUANTIZE=nf4 is not OpenVINO's, .*RUNTIME=torch"):
        saving_of(Settings(quantize="nf4", runtime="openvino"), CPU, by_itself=False)


def test_offloading_takes_no_more_of_the_card_than_its_largest_part() -> None:
    networks = build_networks(Files(EMBEDDED_PATH))
    whole, model, layers = (
        quantize.weight_bytes(networks, FP32, Saving(offload=kind))
        for kind in ("", "model", "sequential")
    )
    assert model == sum(each.numel() for each in networks["unet"].parameters()) * 4
    assert layers < model / 10 < whole
