"""A checkpoint in a single file draws what its folder in diffusers' format draws, and needs no hub for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
)

from tests.doubles import make_request
from tests.init_images import init_image
from tests.integration.engine.conftest import TOLERANCE, draw_alone, settings_for
from tests.integration.engine.originals import (
    clip_weights,
    open_clip_weights,
    original_weights,
    tiny_pipeline,
    tiny_xl,
    unet_weights,
    vae_weights,
)
from text2image.core.settings import Settings
from text2image.engine.layouts.opening import open_pipeline
from text2image.engine.layouts.single_file import lay_out
from text2image.engine.layouts.structure import CLIP_XL, OPEN_CLIP_XL
from text2image.engine.layouts.tokenizer import END, write_tokenizer
from text2image.engine.models.loading import FAMILIES, load_model, revision_of
from text2image.engine.preflight.check import check
from text2image.engine.runtimes.encoder import encoded, load_encoder

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
    # Small random networks hardly show in a picture how their prompt was read.
    laid = lay_out(file, tmp_path / "laid", silent)
    opened = open_pipeline(StableDiffusionPipeline, laid, torch.float32)
    tokens = opened.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    embeddings = [each.text_encoder.eval()(tokens)[0] for each in (opened, pipeline)]
    assert torch.equal(*embeddings)


def test_a_single_file_is_opened_without_the_parts_that_a_runtime_does_not_need(
    pipelines: Callable[[str], StableDiffusionPipeline], tmp_path: Path
) -> None:
    """As OpenVINO's conversion opens it, and what draws with the result."""
    file = tmp_path / "model.safetensors"
    save_file(original_weights(pipelines("sd1")), file)
    folder = lay_out(file, tmp_path / "laid", silent)
    kind = StableDiffusionPipeline
    networks = open_pipeline(kind, folder, torch.float32, text_encoder=None, tokenizer=None)
    assert (networks.text_encoder, networks.tokenizer) == (None, None)
    assert networks.unet.conv_in.weight.device.type == "cpu"
    rest = open_pipeline(kind, folder, torch.float32, unet=None, vae=None)
    assert (rest.unet, rest.vae) == (None, None)
    assert rest.text_encoder.device.type == "cpu"
    encoder = load_encoder(folder, torch.float32)
    assert encoder.decoder is None
    pixels = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    assert torch.equal(encoded(encoder, pixels), encoded(pipelines("sd1").vae.eval(), pixels))


def test_a_network_for_inpainting_draws_from_a_single_file(
    pipelines: Callable[[str], StableDiffusionPipeline], tmp_path: Path
) -> None:
    weights = original_weights(pipelines("sd1"))
    first = f"{NET}input_blocks.0.0.weight"
    weights[first] = torch.cat([weights[first], torch.randn(weights[first].shape[0], 5, 3, 3)], 1)
    file = tmp_path / "inpainting.safetensors"
    save_file(weights, file)
    model = load_model(settings_of(file, tmp_path), 0, silent)
    masked = replace(REQUEST, image=init_image((64, 64), masked=True), strength=1.0)
    assert np.abs(draw_alone(model, masked) - draw_alone(model, REQUEST)).max() > TOLERANCE


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


def save_xl(folder: Path, file: Path) -> StableDiffusionXLPipeline:
    """A small pipeline of the structure of Stable Diffusion XL, as a folder and as a single file."""
    write_tokenizer(folder / "tokenizer", padding=END)
    write_tokenizer(folder / "tokenizer_2", padding="!")
    pipeline = tiny_xl(
        *(AutoTokenizer.from_pretrained(folder / each) for each in ("tokenizer", "tokenizer_2"))
    )
    pipeline.save_pretrained(folder)
    weights = {
        **unet_weights(pipeline.unet),
        **vae_weights(pipeline.vae),
        **clip_weights(pipeline.text_encoder, CLIP_XL),
        **open_clip_weights(pipeline.text_encoder_2, OPEN_CLIP_XL),
    }
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, file)
    return pipeline


def test_a_stable_diffusion_xl_is_loaded_with_the_weights_of_its_folder(tmp_path: Path) -> None:
    """Whatever draws with it: each part, by its own names."""
    file = tmp_path / "xl.safetensors"
    saved = save_xl(tmp_path / "folder", file)
    folder = lay_out(file, tmp_path / "laid", silent)
    assert check(folder, FAMILIES, torch.device("cpu"), torch.float32) == []
    loaded = open_pipeline(StableDiffusionXLPipeline, folder, torch.float32)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        state, expected = (getattr(each, name).state_dict() for each in (loaded, saved))
        assert state.keys() == expected.keys()
        assert [key for key, value in expected.items() if not torch.equal(state[key], value)] == []
    assert (loaded.tokenizer.pad_token_id, loaded.tokenizer_2.pad_token_id) == (49407, 0)


def test_a_stable_diffusion_xl_draws_the_picture_of_its_folder(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "xl.safetensors"
    save_xl(folder, file)
    pictures = [
        draw_alone(load_model(settings_of(each, tmp_path), 0, silent), REQUEST)
        for each in (folder, file)
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= TOLERANCE


def without(prefix: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in [each for each in weights if each.startswith(prefix)]:
            del weights[name]

    return change


NET = "model.diffusion_model."
BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "no autoencoder": (without("first_stage_model."), "has no autoencoder"),
    "no text encoder": (without("cond_stage_model."), "has no text encoder"),
    "no end of the network": (
        without(f"{NET}out."),
        "is a Stable Diffusion 1.x that lacks weights",
    ),
    "a parameter too few": (
        without(f"{NET}middle_block.0.in_layers.2.bias"),
        r"lacks 1 of the \d+ parameters that unet/config\.json asks for: mid_block\.resnets\.0\.conv1",
    ),
    "a layer of the autoencoder too few": (
        without("first_stage_model.encoder.down.1.block.0.conv2"),
        r"lacks 2 of the \d+ parameters that vae/config\.json asks for",
    ),
    "a network for upscaling": (
        lambda weights: weights.update({f"{NET}input_blocks.0.0.weight": torch.zeros(32, 7, 3, 3)}),
        "takes 7 channels, as for upscaling",
    ),
    "another vocabulary": (
        lambda weights: weights.update(
            {
                "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (
                    torch.zeros(100, 64)
                )
            }
        ),
        "of 100 tokens; CLIP's tokenizer has 49408",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_single_file_lacks_is_told_before_it_is_loaded(
    pipelines: Callable[[str], StableDiffusionPipeline], tmp_path: Path, name: str
) -> None:
    change, told = BROKEN[name]
    weights = original_weights(pipelines("sd1"))
    change(weights)
    file = tmp_path / "model.safetensors"
    save_file(weights, file)
    with pytest.raises((OSError, ValueError), match=rf"^T2I_MODEL={file}.*{told}"):
        load_model(settings_of(file, tmp_path), 0, silent)


class Code:
    """What a pickle runs that nobody knows."""


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.ones(1)}, "callbacks": Code()}, file)
    with pytest.raises(OSError, match=r"holds code beside its weights, which is not run here"):
        load_model(settings_of(file, tmp_path), 0, silent)
    with pytest.raises(
        OSError, match=r"no model_index.json in this folder; name a file in it: model"
    ):
        load_model(settings_of(tmp_path, tmp_path), 0, silent)
    with pytest.raises(OSError, match=r"^T2I_MODEL=.*gone\.ckpt: No such file"):
        load_model(settings_of(tmp_path / "gone.ckpt", tmp_path), 0, silent)
