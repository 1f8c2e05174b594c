"""A checkpoint in a single file draws what its folder in diffusers' format draws, and needs no hub for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import AutoTokenizer

from tests.doubles import make_request
from tests.integration.engine.conftest import TOLERANCE, draw_alone, settings_for
from tests.integration.engine.originals import original_weights, tiny_pipeline
from text2image.core.settings import Settings
from text2image.engine.layouts.single_file import lay_out
from text2image.engine.layouts.tokenizer import END, write_tokenizer
from text2image.engine.models.loading import load_model, revision_of
from text2image.engine.runtimes.choice import _without_networks, load_pipeline

REQUEST = make_request("a cat on a hill", steps=3, seed=5, width=64, height=64)


def silent(detail: str) -> None:
    pass


@pytest.fixture(scope="module")
def clip_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    around = tmp_path_factory.mktemp("tokenizers")
    write_tokenizer(around / "sd1", padding=END)
    write_tokenizer(around / "sd2", padding="!")
    return {kind: around / kind for kind in ("sd1", "sd2")}


@pytest.fixture(scope="module")
def pipelines(clip_tokenizers: dict[str, Path]) -> Callable[[str], StableDiffusionPipeline]:
    made: dict[str, StableDiffusionPipeline] = {}

    def pipeline(kind: str) -> StableDiffusionPipeline:
        if kind not in made:
            tokenizer = AutoTokenizer.from_pretrained(clip_tokenizers[kind])
            made[kind] = tiny_pipeline(kind, tokenizer)
        return made[kind]

    return pipeline


def settings_of(path: Path, cache: Path) -> Settings:
    return settings_for(str(path)).model_copy(update={"cache_dir": cache})


def save_as_published(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Published schedulers do not say how their timesteps are spaced: each class of diffusers has its own way then."""
    pipeline.save_pretrained(folder)
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    del config["timestep_spacing"]
    path.write_text(json.dumps(config))


def test_the_tokenizer_that_comes_along_reads_words_as_clip_does(
    clip_tokenizers: dict[str, Path],
) -> None:
    """Ids as OpenAI's own tokenizer gives them."""
    tokenizer = AutoTokenizer.from_pretrained(clip_tokenizers["sd1"])
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("Hello,  World!").input_ids == [49406, 3306, 267, 1002, 256, 49407]
    padded = [
        AutoTokenizer.from_pretrained(folder)("a cat", padding="max_length").input_ids
        for folder in clip_tokenizers.values()
    ]
    assert [(len(ids), ids[-1]) for ids in padded] == [(77, 49407), (77, 0)]


@pytest.mark.parametrize(
    ("kind", "suffix"), [("sd1", ".safetensors"), ("sd1", ".ckpt"), ("sd2", ".safetensors")]
)
def test_a_single_file_draws_the_picture_of_its_folder(
    pipelines: Callable[[str], StableDiffusionPipeline],
    tmp_path: Path,
    kind: str,
    suffix: str,
) -> None:
    pipeline = pipelines(kind)
    folder, file = tmp_path / "folder", tmp_path / f"my model{suffix}"
    save_as_published(pipeline, folder)
    weights = original_weights(pipeline)
    if suffix == ".ckpt":
        torch.save({"state_dict": weights, "global_step": 7}, file)
    else:
        save_file(weights, file)
    from_folder = load_model(settings_of(folder, tmp_path), 0, silent)
    from_file = load_model(settings_of(file, tmp_path), 0, silent)
    assert from_file.info.id == "my model"
    side = 768 if kind == "sd2" else 512
    assert (from_file.info.width, from_file.info.height) == (side, side)
    assert from_file.info.sampler == from_folder.info.sampler
    difference = np.abs(draw_alone(from_file, REQUEST) - draw_alone(from_folder, REQUEST))
    assert difference.max() <= TOLERANCE


def test_a_single_file_is_opened_without_the_parts_that_a_runtime_does_not_need(
    pipelines: Callable[[str], StableDiffusionPipeline], tmp_path: Path
) -> None:
    """As OpenVINO's conversion opens it, and what draws with the result."""
    file = tmp_path / "model.safetensors"
    save_file(original_weights(pipelines("sd1")), file)
    folder = lay_out(file, tmp_path / "laid", silent)
    networks = load_pipeline(folder, torch.float32, text_encoder=None, tokenizer=None)
    assert (networks.text_encoder, networks.tokenizer) == (None, None)
    assert networks.unet.conv_in.weight.device.type == "cpu"
    rest = _without_networks(folder, torch.device("cpu"))
    assert rest.unet.conv_in.weight.is_meta
    assert rest.text_encoder.device.type == "cpu"


def test_a_changed_file_changes_the_revision(
    pipelines: Callable[[str], StableDiffusionPipeline], tmp_path: Path
) -> None:
    weights = original_weights(pipelines("sd1"))
    file = tmp_path / "model.safetensors"
    revisions = []
    for _ in range(2):
        save_file(weights, file)
        folder = lay_out(file, tmp_path / "laid", silent)
        assert folder == lay_out(file, tmp_path / "laid", silent)
        revisions.append(revision_of(folder))
        weights["model.diffusion_model.out.2.bias"] += 1
    assert revisions[0] != revisions[1]


def test_what_a_network_predicts_is_read_from_what_lies_beside_or_in_the_file(
    pipelines: Callable[[str], StableDiffusionPipeline], tmp_path: Path
) -> None:
    weights = original_weights(pipelines("sd2"))
    told: list[str] = []

    def scheduler_of(name: str, metadata: dict[str, str] | None = None) -> tuple[str, int]:
        file = tmp_path / f"{name}.safetensors"
        save_file(weights, file, metadata)
        folder = lay_out(file, tmp_path / "laid", told.append)
        config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        side = json.loads((folder / "vae" / "config.json").read_text())["sample_size"]
        return config["prediction_type"], side

    assert scheduler_of("unknown") == ("v_prediction", 768)
    (line,) = told
    assert "unknown.yaml" in line
    architecture = {"modelspec.architecture": "stable-diffusion-v2-512"}
    assert scheduler_of("named", architecture) == ("epsilon", 512)
    (tmp_path / "beside.yaml").write_text("model:\n  params:\n    parameterization: eps\n")
    assert scheduler_of("beside") == ("epsilon", 512)
    (tmp_path / "v.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert scheduler_of("v") == ("v_prediction", 768)
    assert len(told) == 1
