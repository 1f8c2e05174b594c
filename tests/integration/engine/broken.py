"""Ways to break a small pipeline's folder, and what is told of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from text2image.engine.models.loading import EMBEDDED_PATH

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"

Break = Callable[[Path], None]


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
    "a processor that needs a package": (
        configured("model_index.json", tokenizer=["transformers", "Qwen2VLProcessor"]),
        r"model_index\.json: names a Qwen2VLProcessor .* pip install torchvision",
    ),
    "another family": (
        configured("model_index.json", _class_name="StableDiffusionDepth2ImgPipeline"),
        r"model_index\.json: it is a StableDiffusionDepth2ImgPipeline; this server draws with Stable",
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
