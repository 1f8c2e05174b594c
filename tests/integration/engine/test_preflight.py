"""What is wrong with a model is told by its file, before it is loaded: one small pipeline, broken in many ways."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5EncoderModel

from tests.doubles import make_request
from tests.integration.engine.broken import (
    BROKEN,
    SCHEDULER,
    TEXT,
    UNET,
    VAE,
    configured,
    cut,
    removed,
    weighted,
)
from tests.integration.engine.conftest import draw_alone, settings_for
from text2image.cli import main as cli
from text2image.core.settings import Settings
from text2image.engine.host_memory import HostMemory
from text2image.engine.memory import MemoryGuard
from text2image.engine.models.loading import EMBEDDED_PATH, FAMILIES, load_model, locate
from text2image.engine.preflight import fitting
from text2image.engine.preflight.check import check
from text2image.engine.preflight.networks import _differences
from text2image.engine.warmup import measure
from text2image.ops.check import findings_of, main

CPU = torch.device("cpu")


def look_at(folder: Path, dtype: torch.dtype = torch.float32, *, deep: bool = False) -> list[str]:
    return [str(each) for each in check(folder, FAMILIES, CPU, dtype, deep=deep) if each.fatal]


@pytest.fixture
def folder(pipeline_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    shutil.copytree(pipeline_folder("sd1"), copy)
    return copy


def test_a_whole_pipeline_has_nothing_to_tell(
    pipeline_folder: Callable[[str], Path],
) -> None:
    for kind in ("sd1", "sd2", "turbo", "lcm"):
        assert look_at(pipeline_folder(kind), deep=True) == []
    assert look_at(EMBEDDED_PATH, deep=True) == []


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_told_by_its_file(folder: Path, name: str) -> None:
    break_it, told = BROKEN[name]
    break_it(folder)
    (finding,) = look_at(folder)
    assert re.search(told, finding), finding


def test_faults_of_several_files_are_all_told_and_a_server_does_not_begin_to_load(
    folder: Path,
) -> None:
    removed("tokenizer/tokenizer.json")(folder)
    cut(VAE, 0.5)(folder)
    weighted(UNET, lambda weights: weights.pop("conv_in.bias"))(folder)
    assert [told.partition(":")[0] for told in look_at(folder)] == ["tokenizer", VAE, UNET]
    with pytest.raises(ValueError, match=rf"^T2I_MODEL=.*tokenizer: .*; {VAE}: .*; {UNET}: lacks"):
        load_model(settings_for(str(folder)), 0, lambda detail: None)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_found_by_the_name_of_their_parameter(
    folder: Path, number: float
) -> None:
    weighted(UNET, lambda weights: weights["conv_out.bias"].__setitem__(1, number))(folder)
    assert look_at(folder) == []
    (told,) = look_at(folder, deep=True)
    assert told.startswith(f"{UNET}: holds NaN or infinite numbers in 1 parameters: conv_out.bias;")


@pytest.mark.parametrize("place", [UNET, VAE, TEXT])
def test_a_model_whose_first_picture_is_not_finite_is_never_ready(folder: Path, place: str) -> None:
    """Whichever part the numbers are in; the headers say nothing of them."""

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        name = next(each for each in weights if "norm" in each and "encoder.down" not in each)
        weights[name][:] = torch.nan

    weighted(place, spoil)(folder)
    model = load_model(settings_for(str(folder)), 0, lambda detail: None)
    with pytest.raises(ValueError, match=r"draws nothing: .* not finite; .* T2I_DTYPE=float32"):
        measure(model, MemoryGuard(), max_rows=1, clock=time.monotonic, report=lambda detail: None)


def test_weights_for_which_there_is_no_room_are_told_with_what_would_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = HostMemory()
    monkeypatch.setattr(memory, "free", lambda: 1 << 10)
    monkeypatch.setattr(fitting.devices, "memory_of", lambda device: memory)
    (told,) = look_at(folder)
    assert re.match(
        r"T2I_DEVICE: the weights take 0\.\d GiB in float32, and cpu has 0\.0 GiB free; .*=float16",
        told,
    )


def test_a_precision_that_the_device_does_not_compute_in_is_told_with_those_that_work(
    folder: Path,
) -> None:
    (told,) = look_at(folder, torch.float8_e4m3fn)
    assert told.startswith("T2I_DTYPE: float8_e4m3fn cannot be computed in on cpu (")
    assert told.endswith("set float32 or float16 or bfloat16")


def test_weights_in_floats_of_8_bits_are_read(folder: Path) -> None:
    def shrink(weights: dict[str, torch.Tensor]) -> None:
        weights.update({name: each.to(torch.float8_e4m3fn) for name, each in weights.items()})

    weighted(UNET, shrink)(folder)
    assert look_at(folder, deep=True) == []
    model = load_model(settings_for(str(folder)), 0, lambda detail: None)
    assert draw_alone(model, make_request(steps=2)).any()


def test_names_of_years_ago_are_known(folder: Path) -> None:
    """As those of the autoencoder's attention in Stable Diffusion 1.5's own repository."""

    def rename(weights: dict[str, torch.Tensor]) -> None:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for name in [each for each in weights if ".mid_block.attentions." in each]:
            new, old = next(((a, b) for a, b in names.items() if f".{a}." in name), ("", ""))
            weights[name.replace(new, old) if new else name] = weights.pop(name)

    def add_counters(weights: dict[str, torch.Tensor]) -> None:
        weights["text_model.embeddings.position_ids"] = torch.arange(24)[None]
        weights["visual_projection.weight"] = torch.zeros(2, 2)

    weighted(VAE, rename)(folder)
    weighted(TEXT, add_counters)(folder)
    assert "decoder.mid_block.attentions.0.query.weight" in load_file(folder / VAE)
    assert look_at(folder) == []
    assert load_model(settings_for(str(folder)), 0, lambda detail: None).info.id == "model"


def test_a_parameter_that_is_another_one_may_be_left_out_or_not() -> None:
    """T5's embeddings have two names, and of its files some hold one of them and some both."""
    with torch.device("meta"):
        network = T5EncoderModel(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1))
    both = {name: tuple(each.shape) for name, each in network.state_dict().items()}
    one = {name: shape for name, shape in both.items() if "embed_tokens" not in name}
    assert len(one) == len(both) - 1
    for stored in (both, one, {**one, "decoder.final_layer_norm.weight": (8,)}):
        assert _differences(network, stored, "config.json") == []
    assert _differences(network, {**one, "encoder.extra": (1,)}, "config.json")


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "LMSDiscreteScheduler"},
        {"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True},
    ],
)
def test_schedules_that_diffusers_needs_scipy_for_are_drawn_without(
    folder: Path, change: dict[str, Any]
) -> None:
    configured(SCHEDULER, skip_prk_steps=None, **change)(folder)
    named = ["diffusers", change["_class_name"]]
    configured("model_index.json", scheduler=named)(folder)
    assert look_at(folder) == []
    model = load_model(settings_for(str(folder)), 0, lambda detail: None)
    assert model.info.sampler in ("lms", "euler")
    assert draw_alone(model, make_request(steps=2, sampler=model.info.sampler)).any()


def in_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: Path | str) -> Settings:
    """Settings of a model in a hub's cache; of one that was not fetched yet there is the index alone."""
    cached = tmp_path / "hub" / "models--somebody--small-sd"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = cached / "snapshots" / commit
    if isinstance(pipeline, Path):
        shutil.copytree(pipeline, snapshot)
    else:
        snapshot.mkdir(parents=True)
        (snapshot / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return settings_for("somebody/small-sd")


def test_the_class_of_a_hub_model_is_read_before_its_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = in_cache(tmp_path, monkeypatch, "MochiPipeline")
    with pytest.raises(OSError, match=r"it is a MochiPipeline; .*; nothing was fetched"):
        locate(settings, lambda detail: None)


def test_a_hub_model_is_checked_where_it_lies_in_the_cache(
    pipeline_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = in_cache(tmp_path, monkeypatch, pipeline_folder("sd1"))
    assert findings_of(settings, deep=False) == []


def test_the_command_tells_each_fault_and_whether_the_model_can_be_served(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder)]) == 0
    assert capsys.readouterr().err.endswith(f"{folder}: no fault was found\n")
    weighted(UNET, lambda weights: weights["conv_out.bias"].__setitem__(1, torch.nan))(folder)
    assert main([str(folder), "--headers-only"]) == 0
    removed("vae")(folder)
    capsys.readouterr()
    assert main([str(folder)]) == 1
    out, err = capsys.readouterr()
    assert [line.partition(":")[0] for line in out.splitlines()] == ["vae", UNET]
    assert err.endswith("cannot be served, for the 2 above\n")
    assert main([str(folder / "nothing")]) == 1
    assert "model_index.json" in capsys.readouterr().out


def test_the_command_is_the_first_word(folder: Path) -> None:
    assert cli.main(["check", str(folder), "--headers-only"]) == 0
    (folder / "model_index.json").unlink()
    assert cli.main(["check", str(folder), "--headers-only"]) == 1
