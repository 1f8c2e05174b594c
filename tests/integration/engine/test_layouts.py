"""However a model lies on disk, it draws the picture of the plain folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import load_file

from tests.doubles import make_request
from tests.integration.engine.conftest import TOLERANCE, draw_alone, settings_for
from tests.integration.engine.test_pipeline_parity import draw_with_pipeline
from text2image.core.errors import InvalidRequest
from text2image.core.messages import RequestParams
from text2image.core.validation import resolve
from text2image.engine.models.loading import load_model, revision_of
from text2image.engine.readahead import wanted

REQUEST = make_request("a cat", steps=3, seed=1)

Lay = Callable[[Path, Path], None]


def draw(folder: Path) -> np.ndarray:
    return draw_alone(load_model(settings_for(str(folder)), 0, lambda detail: None), REQUEST)


def linked_files(plain: Path, target: Path) -> None:
    """As a hub's snapshot: every file is a link to one in `blobs`, under a name that says nothing."""
    blobs = target.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(each for each in plain.rglob("*") if each.is_file())):
        blob = shutil.copy(path, blobs / f"{number:040x}")
        link = target / path.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


def linked_parts(plain: Path, target: Path) -> None:
    """As somebody has it who shares an autoencoder among models."""
    shared = target.parent / "shared"
    shutil.copytree(plain, shared)
    target.mkdir()
    for path in shared.iterdir():
        (target / path.name).symlink_to(path)


def half_alone(plain: Path, target: Path) -> None:
    """As fp16 repositories have it: no part has weights of full precision."""
    # Such numbers as half precision has, so that nothing is lost.
    pipeline = StableDiffusionPipeline.from_pretrained(plain, dtype=torch.float16)
    pipeline.save_pretrained(target, variant="fp16")
    pipeline.to(torch.float32).save_pretrained(plain)


def half_in_part(plain: Path, target: Path) -> None:
    """The text encoder in full precision, the networks in half."""
    half_alone(plain, target)
    for path in (target / "text_encoder").glob("*.safetensors"):
        path.unlink()
    shutil.copy(plain / "text_encoder" / "model.safetensors", target / "text_encoder")


def sharded(plain: Path, target: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(plain)
    pipeline.save_pretrained(target, max_shard_size="200KB")
    assert len(list((target / "unet").glob("*-of-*.safetensors"))) > 1


def sharded_in_half(plain: Path, target: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(plain, dtype=torch.float16)
    pipeline.save_pretrained(target, variant="fp16", max_shard_size="100KB")
    assert (target / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    pipeline.to(torch.float32).save_pretrained(plain)


def pickled(plain: Path, target: Path) -> None:
    """As it was before safetensors."""
    shutil.copytree(plain, target)
    for path in target.rglob("*.safetensors"):
        torch.save(load_file(path), path.parent / path.name.replace("safetensors", "bin"))
        path.unlink()
    # As transformers names them.
    (target / "text_encoder" / "model.bin").rename(target / "text_encoder" / "pytorch_model.bin")


def named_but_missing(plain: Path, target: Path) -> None:
    """As it is left when what does not draw is not fetched."""
    shutil.copytree(plain, target)
    path = target / "model_index.json"
    index = json.loads(path.read_text()) | {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    path.write_text(json.dumps(index))


def never_named(plain: Path, target: Path) -> None:
    shutil.copytree(plain, target)
    path = target / "model_index.json"
    index = json.loads(path.read_text())
    for name in ("safety_checker", "feature_extractor", "image_encoder"):
        index.pop(name, None)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "lay",
    [
        linked_files,
        linked_parts,
        half_alone,
        half_in_part,
        sharded,
        sharded_in_half,
        pickled,
        named_but_missing,
        never_named,
    ],
)
def test_every_layout_draws_the_picture_of_the_plain_folder(
    pipeline_folder: Callable[[str], Path], tmp_path: Path, lay: Lay
) -> None:
    plain, target = tmp_path / "plain", tmp_path / "model"
    shutil.copytree(pipeline_folder("sd1"), plain)
    lay(plain, target)
    assert np.abs(draw(target) - draw(plain)).max() <= TOLERANCE


@pytest.mark.parametrize("lay", [linked_files, linked_parts])
def test_what_is_behind_links_counts_for_the_revision_and_is_read_ahead(
    pipeline_folder: Callable[[str], Path], tmp_path: Path, lay: Lay
) -> None:
    folder = tmp_path / "model"
    lay(pipeline_folder("sd1"), folder)
    before = revision_of(folder)
    assert before == revision_of(pipeline_folder("sd1"))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    assert weights in set(wanted(settings_for(str(folder))))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.resolve().write_bytes(data)
    assert revision_of(folder) != before


def test_a_link_to_a_folder_around_it_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    (tmp_path / "model" / "again").symlink_to(tmp_path / "model")
    assert len(revision_of(tmp_path / "model")) == 12


# The VAE's factor


def with_vae(plain: Path, target: Path, levels: int) -> StableDiffusionPipeline:
    """A pipeline whose autoencoder halves its pictures one time less than it has levels."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    pipeline = StableDiffusionPipeline.from_pretrained(plain, vae=vae)
    pipeline.save_pretrained(target)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(("levels", "factor"), [(4, 8), (5, 16), (6, 32)])
def test_a_pictures_size_is_what_was_asked_for_whatever_the_factor_of_the_autoencoder(
    pipeline_folder: Callable[[str], Path], tmp_path: Path, levels: int, factor: int
) -> None:
    pipeline = with_vae(pipeline_folder("sd1"), tmp_path / "model", levels)
    model = load_model(settings_for(str(tmp_path / "model")), 0, lambda detail: None)
    info = model.info
    assert (info.side_multiple, info.width) == (factor, 16 * factor)
    assert info.min_side % factor == info.max_side % factor == 0

    def asked(**sizes: int) -> Any:
        return resolve(RequestParams(prompt="a cat", seed=3, steps=2, **sizes), info)

    request = asked(width=96, height=160)
    picture = draw_alone(model, request)
    assert picture.shape == (160, 96, 3)
    theirs = draw_with_pipeline(pipeline, request)
    assert np.abs(picture - theirs).max() <= TOLERANCE
    with pytest.raises(InvalidRequest, match=rf"height: .* must be a multiple of {factor}"):
        asked(width=96, height=160 + factor // 2)
