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
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from tests.doubles import make_request
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
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"

Break = Callable[[Path], None]


def look_at(folder: Path, dtype: torch.dtype = torch.float32, *, deep: bool = False) -> list[str]:
    return [str(each) for each in check(folder, FAMILIES, CPU, dtype, deep=deep) if each.fatal]


def removed(place: str) -> Break:
    def change(folder: Path) -> None:
        path = folder / place
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def written(place: str, content: str | bytes) -> Break:
    def change(folder: Path) -> None:
        path = folder / place
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def cut(place: str, share: float) -> Break:
    def change(folder: Path) -> None:
        data = (folder / place).read_bytes()
        (folder / place).write_bytes(data[: int(len(data) * share)])

    return change


def linked(place: str, target: str) -> Break:
    def change(folder: Path) -> None:
        removed(place)(folder)
        (folder / place).symlink_to(target)

    return change


def configured(place: str, **values: Any) -> Break:
    """Changes values of a JSON file; those that are None are taken out."""

    def change(folder: Path) -> None:
        content = json.loads((folder / place).read_text()) | values
        kept = {name: value for name, value in content.items() if value is not None}
        (folder / place).write_text(json.dumps(kept))

    return change


def weighted(place: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    def change(folder: Path) -> None:
        weights = load_file(folder / place)
        edit(weights)
        save_file(weights, folder / place)

    return change


def pickled(place: str, content: Any) -> Break:
    def change(folder: Path) -> None:
        removed(place)(folder)
        torch.save(content, (folder / place).with_suffix(".bin"))

    return change


def sharded(folder: Path) -> None:
    """The U-Net in two files, of which the second is not there."""
    weights = load_file(folder / UNET)
    (folder / UNET).unlink()
    names = sorted(weights)
    shards = ["diffusion_pytorch_model-00001-of-00002.safetensors"] * 5
    shards += ["diffusion_pytorch_model-00002-of-00002.safetensors"] * (len(names) - 5)
    save_file({name: weights[name] for name in names[:5]}, folder / "unet" / shards[0])
    index = {"metadata": {}, "weight_map": dict(zip(names, shards, strict=True))}
    (folder / f"{UNET}.index.json").write_text(json.dumps(index))


def sharded_wrongly(folder: Path) -> None:
    """The U-Net in a file that lacks what its index says is in it."""
    index = dict.fromkeys(load_file(folder / UNET), "shard.safetensors")
    weights = load_file(folder / UNET)
    del weights["conv_out.bias"]
    (folder / UNET).unlink()
    save_file(weights, folder / "unet" / "shard.safetensors")
    (folder / f"{UNET}.index.json").write_text(json.dumps({"weight_map": index}))


class Code:
    """What a pickle runs that nobody knows."""


BROKEN: dict[str, tuple[Break, str]] = {
    # Missing, or not what it should be.
    "no index": (removed("model_index.json"), r"model_index\.json: is missing"),
    "empty index": (written("model_index.json", ""), r"model_index\.json: is empty"),
    "index is no JSON": (
        written("model_index.json", '{\n"a": 1,\n}'),
        r"model_index\.json: is no JSON: .* in line 3",
    ),
    "index of a list": (written("model_index.json", "[]"), r"model_index\.json: holds no JSON obj"),
    "no class": (
        configured("model_index.json", _class_name=None),
        r"model_index\.json: names no pipeline class",
    ),
    "another family": (
        configured("model_index.json", _class_name="StableDiffusionInpaintPipeline"),
        r"model_index\.json: it is a StableDiffusionInpaintPipeline; this server draws with Stable",
    ),
    "a part that nobody names": (
        configured("model_index.json", vae=None),
        r"model_index\.json: names no vae, which a StableDiffusionPipeline draws with",
    ),
    "a class that nobody knows": (
        configured("model_index.json", unet=["diffusers", "UNet9D"]),
        r"model_index\.json: names a diffusers\.UNet9D, which is not in diffusers \d",
    ),
    "no folder": (removed("vae"), r"vae: the folder of the AutoencoderKL is missing"),
    "no configuration": (removed("unet/config.json"), r"unet/config\.json: is missing"),
    "a configuration that is cut": (
        cut("text_encoder/config.json", 0.5),
        r"text_encoder/config\.json: is no JSON",
    ),
    "an impossible configuration": (
        configured("unet/config.json", down_block_types=["NoBlock2D", "DownBlock2D"]),
        r"unet/config\.json: describes no UNet2DConditionModel: .*NoBlock2D",
    ),
    "no tokenizer": (
        removed("tokenizer/tokenizer.json"),
        r"tokenizer: holds no tokenizer: tokenizer\.json or vocab\.json with merges\.txt",
    ),
    "half a tokenizer": (
        lambda folder: (folder / "tokenizer/tokenizer.json").rename(
            folder / "tokenizer/vocab.json"
        ),
        r"tokenizer/merges\.txt: is missing",
    ),
    "a tokenizer that is cut": (
        cut("tokenizer/tokenizer.json", 0.9),
        r"tokenizer/tokenizer\.json: is no JSON",
    ),
    "no scheduler": (removed(SCHEDULER), r"scheduler/scheduler_config\.json: is missing"),
    "no weights": (removed(UNET), r"unet: holds no weights: no \*\.safetensors or \*\.bin"),
    "weights of another name": (
        lambda folder: (folder / UNET).rename(folder / "unet" / "weights.safetensors"),
        r"unet: holds no weights: .*; there is weights\.safetensors",
    ),
    "a link to nothing": (
        linked(UNET, "../../blobs/1234"),
        rf"{UNET}: is a link to \.\./\.\./blobs/1234, which is not there",
    ),
    "a linked folder of nothing": (
        linked("vae", "../elsewhere"),
        r"vae: is a link to \.\./elsewhere, which is not there",
    ),
    "a folder in place of weights": (
        lambda folder: [(folder / VAE).unlink(), (folder / VAE).mkdir()],
        rf"{VAE}: cannot be read \(Is a directory\)",
    ),
    # Weights that are damaged.
    "empty weights": (written(UNET, b""), rf"{UNET}: is empty"),
    "weights that are cut": (
        cut(UNET, 0.5),
        rf"{UNET}: has 0\.\d of its 1\.\d MiB of weights; fetch it again",
    ),
    "weights cut in their header": (cut(TEXT, 0.001), rf"{TEXT}: ends within its header"),
    "no safetensors": (written(VAE, b"\1\0\0\0\0\0\0\0[" * 9), rf"{VAE}: is no safetensors file"),
    "a pointer": (
        written(UNET, "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 34\n"),
        rf"{UNET}: is a pointer of Git LFS, not the weights; run `git lfs pull`",
    ),
    "a web page": (written(UNET, "<!DOCTYPE html>\n<html>Sign in</html>"), r"is a web page"),
    "a pickle under a wrong name": (
        lambda folder: torch.save({"a": torch.ones(1)}, folder / UNET),
        rf"{UNET}: is a pickle of PyTorch's under another name",
    ),
    "a pickle with code": (
        pickled(UNET, {"weight": torch.ones(1), "code": Code()}),
        r"unet/diffusion_pytorch_model\.bin: holds code beside its weights, which is not run",
    ),
    "a damaged pickle": (
        lambda folder: [
            pickled(UNET, {"a": torch.ones(99)})(folder),
            cut(f"{UNET[:-12]}.bin", 0.5)(folder),
        ],
        r"unet/diffusion_pytorch_model\.bin: is damaged",
    ),
    "a missing shard": (
        sharded,
        r"unet/diffusion_pytorch_model-00002-of-00002\.safetensors: is missing",
    ),
    "an index of no shards": (
        lambda folder: [(folder / UNET).unlink(), written(f"{UNET}.index.json", "{}")(folder)],
        r"unet: names no shards",
    ),
    "a shard that lacks what its index says": (
        sharded_wrongly,
        r"unet/shard\.safetensors: lacks what diffusion_pytorch_model\.safetensors\.index\.json "
        r"says is in it: conv_out\.bias",
    ),
    # Weights that are not those of the configuration.
    "a parameter too few": (
        weighted(UNET, lambda weights: weights.pop("conv_in.bias")),
        rf"{UNET}: lacks 1 of the \d+ parameters that unet/config\.json asks for: conv_in\.bias",
    ),
    "a text encoder with a layer too few": (
        configured("text_encoder/config.json", num_hidden_layers=3),
        rf"{TEXT}: lacks 16 of the \d+ parameters .*: encoder\.layers\.2\.",
    ),
    "a text encoder with a layer too many": (
        configured("text_encoder/config.json", num_hidden_layers=1),
        rf"{TEXT}: has 16 parameters that text_encoder/config\.json knows nothing of: encoder\.",
    ),
    "a parameter too many": (
        weighted(VAE, lambda weights: weights.update(extra=torch.zeros(1))),
        rf"{VAE}: has 1 parameters that vae/config\.json knows nothing of: extra",
    ),
    "another shape": (
        weighted(UNET, lambda weights: weights.update({"conv_in.bias": torch.zeros(7)})),
        rf"{UNET}: has other shapes than unet/config\.json says: conv_in\.bias is 7 and not 16",
    ),
    "quantized weights": (
        configured("unet/config.json", quantization_config={"quant_method": "bitsandbytes"}),
        r"unet/config\.json: the weights are quantized \(bitsandbytes\); fetch the model in half",
    ),
    "weights of 8 bits": (
        weighted(
            UNET, lambda weights: weights.update({"conv_in.bias": torch.zeros(16).to(torch.int8)})
        ),
        rf"{UNET}: holds weights as I8; fetch the model in half or full precision \(F16, BF16",
    ),
    # Parts that do not fit.
    "a network for inpainting": (
        lambda folder: [
            configured("unet/config.json", in_channels=9)(folder),
            weighted(UNET, lambda w: w.update({"conv_in.weight": torch.zeros(16, 9, 3, 3)}))(
                folder
            ),
        ],
        r"unet/config\.json: the network takes 9 channels and the autoencoder has 4, as for inpaint",
    ),
    "another model's text encoder": (
        lambda folder: shutil.copytree(
            EMBEDDED_PATH / "text_encoder", folder / "text_encoder", dirs_exist_ok=True
        ),
        r"unet/config\.json: cross_attention_dim is 32, and the text encoder puts out \d+ numbers",
    ),
    "another model's tokenizer": (
        lambda folder: [
            removed("tokenizer/tokenizer.json")(folder),
            written("tokenizer/vocab.json", '{"a": 0, "b": 49407}')(folder),
            written("tokenizer/merges.txt", "")(folder),
        ],
        r"tokenizer: its tokens go up to 49407, and the text_encoder has room for \d+",
    ),
    "a scheduler that is none": (
        configured(SCHEDULER, _class_name="FancyScheduler"),
        rf"{SCHEDULER}: FancyScheduler is no scheduler of the installed version, .*; what works: DDIM",
    ),
    "a scheduler whose package is not installed": (
        configured(SCHEDULER, _class_name="DPMSolverSDEScheduler"),
        rf"{SCHEDULER}: DPMSolverSDEScheduler needs a package that is not installed; pip install to",
    ),
    "a prediction that no sampler knows": (
        configured(SCHEDULER, prediction_type="colours"),
        rf"{SCHEDULER}: PNDMScheduler \(colours\) is a scheduler that no sampler here can stand in for; what works",
    ),
}


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
