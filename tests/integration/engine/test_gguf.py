"""A transformer in a GGUF file draws what diffusers draws with it, and what is wrong with one is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import gguf
import numpy as np
import pytest
import torch
from diffusers import GGUFQuantizationConfig

from tests.doubles import make_request
from tests.integration.engine.conftest import TOLERANCE, draw_alone, settings_for
from tests.integration.engine.pipelines import Reference
from text2image.core.catalogue import find_entries
from text2image.core.messages import Request, Sampler
from text2image.core.settings import Settings
from text2image.engine.models.inspection import inspect_model
from text2image.engine.models.loading import FAMILIES, load_model, locate
from text2image.engine.preflight.check import check

Weights = dict[str, torch.Tensor]
Folders = Callable[[str], Path]
Q8, Q4 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0
BLOCK = 32

BLOCKS = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
OTHERS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
TRIPLES = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def original_sd3(weights: Weights) -> Weights:
    """SD3's transformer as its training code names it: back from `convert_sd3_transformer_checkpoint_to_diffusers`."""
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("transformer_"))
    named: Weights = {}

    def put(name: str, other: str, *, swapped: bool = False) -> None:
        for ending in ("", ".weight", ".bias"):
            if (tensor := weights.get(name + ending)) is not None:
                halves = tensor.chunk(2) if swapped else ()
                named[other + ending] = torch.cat(halves[::-1]) if swapped else tensor

    for name, other in OTHERS.items():
        put(name, other, swapped=name == "norm_out.linear")
    for layer in range(layers):
        mine, theirs = f"transformer_blocks.{layer}.", f"joint_blocks.{layer}."
        for name, other in BLOCKS.items():
            last = layer == layers - 1 and name == "norm1_context.linear"
            put(mine + name, theirs + other, swapped=last)
        for other, parts in TRIPLES.items():
            for ending in (".weight", ".bias"):
                triple = [weights[mine + part + ending] for part in parts]
                named[theirs + other + ending] = torch.cat(triple)
    return named


def write(path: Path, weights: Weights, kind: Any) -> Path:
    """A GGUF file whose matrices are quantized, as far as they fall into blocks."""
    writer = gguf.GGUFWriter(path, arch="flux")
    for name, tensor in weights.items():
        numbers = tensor.float().numpy()
        if tensor.ndim == 2 and tensor.shape[1] % BLOCK == 0:
            writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(numbers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Path]:
    made: dict[str, Path] = {}

    def file(kind: str, folder: Path) -> Path:
        if kind not in made:
            transformer = Reference(folder).pipeline.transformer
            weights = {name: each.detach() for name, each in transformer.state_dict().items()}
            # diffusers reads Flux's original names at the width of the published models alone.
            named = original_sd3(weights) if kind.startswith("sd3") else weights
            target = tmp_path_factory.mktemp("gguf") / f"{kind}.gguf"
            made[kind] = write(target, named, Q4 if kind.startswith("sd3") else Q8)
        return made[kind]

    return file


def ask(**more: Any) -> Request:
    usual = {"width": 64, "height": 64, "sampler": Sampler.FLOW_EULER, "steps": 4, "seed": 1}
    return make_request("a red fox", **{**usual, **more})


def settings(folder: Path, cache: Path, **more: Any) -> Settings:
    changes = {"cache_dir": cache, "runtime": "auto", **more}
    return settings_for(str(folder)).model_copy(update=changes)


@pytest.mark.parametrize("kind", ["flux-dev", "sd3-bare"])
def test_a_quantized_transformer_draws_what_diffusers_draws_with_it(
    pipeline_folder: Folders, files: Callable[[str, Path], Path], kind: str, tmp_path: Path
) -> None:
    folder = pipeline_folder(kind)
    file = files(kind, folder)
    # Of a pipeline without the transformer's own weights, as one would fetch it.
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("diffusion_pytorch_model*"))
    shutil.copytree(folder / "vae", bare / "vae", dirs_exist_ok=True)
    asked = settings(bare, tmp_path, transformer=file)
    model = load_model(asked, 0, lambda detail: None)
    reference = Reference(folder)
    plain = reference.draw(ask())
    network = getattr(diffusers, type(reference.pipeline.transformer).__name__)
    reference.pipeline.transformer = network.from_single_file(
        str(file),
        config=str(folder / "transformer"),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        dtype=torch.float32,
    )
    expected = reference.draw(ask())
    assert np.abs(draw_alone(model, ask()) - expected).max() <= TOLERANCE
    assert np.abs(plain - expected).max() > TOLERANCE, "or quantization would not be seen"
    assert any(type(each).__name__ == "GGUFLinear" for each in model._networks._unet.modules()), (
        "weights stay quantized"
    )
    info, size = inspect_model(asked, 0)
    assert info == model.info
    assert size < inspect_model(settings(folder, tmp_path), 0)[1]


def test_a_file_in_the_transformers_folder_is_read_and_changes_the_revision(
    pipeline_folder: Folders, files: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    folder = pipeline_folder("flux-dev")
    copy = tmp_path / "flux"
    shutil.copytree(folder, copy)
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copy(files("flux-dev", folder), copy / "transformer" / "flux1-dev-Q8_0.gguf")
    model = load_model(settings(copy, tmp_path), 0, lambda detail: None)
    named = settings(folder, tmp_path, transformer=files("flux-dev", folder))
    other = load_model(named, 0, lambda detail: None)
    assert np.abs(draw_alone(model, ask()) - draw_alone(other, ask())).max() == 0
    revisions = {inspect_model(settings(each, tmp_path), 0)[0].revision for each in (folder, copy)}
    assert len(revisions) == 2
    with pytest.raises(ValueError, match=r"T2I_RUNTIME=openvino, .* in a GGUF file"):
        load_model(settings(copy, tmp_path, runtime="openvino"), 0, lambda detail: None)


def test_a_catalogue_names_the_file_of_each_model(
    pipeline_folder: Folders, files: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    folder = pipeline_folder("flux-dev")
    shutil.copy(files("flux-dev", folder), tmp_path / "small.gguf")
    listed = tmp_path / "models.toml"
    listed.write_text(
        f'[models.small]\npath = "{folder}"\ntransformer = "small.gguf"\n'
        f'[models.large]\npath = "{folder}"\n'
    )
    entries = find_entries(str(listed))
    base = settings(folder, tmp_path, transformer=Path("another.gguf"))
    assert entries["small"].applied_to(base).transformer == tmp_path / "small.gguf"
    assert entries["large"].applied_to(base).transformer is None
    with (tmp_path / "small.gguf").open("ab") as file:
        file.write(b"\0")
    assert find_entries(str(listed))["small"] != entries["small"]


def test_what_is_wrong_with_a_file_is_told_by_its_name(
    pipeline_folder: Folders, files: Callable[[str, Path], Path], tmp_path: Path
) -> None:
    folder = pipeline_folder("flux-dev")
    whole = files("flux-dev", folder)
    weights = Reference(folder).pipeline.transformer.state_dict()

    def told(file: Path, *, deep: bool = False) -> str:
        around = locate(settings(folder, tmp_path, transformer=file), lambda detail: None)
        found = check(around, FAMILIES, torch.device("cpu"), torch.float32, deep=deep)
        return "; ".join(map(str, found))

    assert told(whole, deep=True) == ""
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole.read_bytes()[:-1000])
    assert "transformer/cut.gguf: is damaged" in told(cut)
    impostor = tmp_path / "other.gguf"
    impostor.write_bytes(b"<html>")
    assert "transformer/other.gguf: is no GGUF file" in told(impostor)
    lacking = {name: each for name, each in weights.items() if name != "x_embedder.bias"}
    less = write(tmp_path / "less.gguf", lacking, Q8)
    assert "transformer/less.gguf" in told(less)
    broken = {**weights, "x_embedder.bias": torch.full_like(weights["x_embedder.bias"], torch.nan)}
    assert "x_embedder.bias" in told(write(tmp_path / "nan.gguf", broken, Q8), deep=True)
    missing = settings(folder, tmp_path, transformer=tmp_path / "nowhere.gguf")
    with pytest.raises(OSError, match=r"T2I_TRANSFORMER=.*nowhere.gguf: No such file"):
        locate(missing, lambda detail: None)
    unet = settings(pipeline_folder("sd1"), tmp_path, transformer=whole)
    with pytest.raises(OSError, match="the pipeline has no transformer"):
        locate(unet, lambda detail: None)
