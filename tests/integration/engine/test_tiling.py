"""Pictures that are decoded in tiles: as diffusers does it, by their size alone, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.doubles import make_request
from tests.integration.engine.conftest import (
    DEVICE,
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
)
from tests.integration.engine.pipelines import draw_with_pipeline
from text2image.core.settings import Settings
from text2image.engine import devices
from text2image.engine.models.inspection import inspect_model
from text2image.engine.models.loading import EMBEDDED_PATH, checkpoint_of, load_model
from text2image.engine.runtimes import tiling
from text2image.engine.runtimes.choice import load_pipeline
from text2image.engine.runtimes.tiling import WHOLE, Tiles, tile_own, tiles_for

SIDE = 128
SD = {"block_out_channels": (128, 256, 512, 512), "sample_size": 512}
GIB = 1 << 30


@pytest.fixture
def vae(pipeline_folder: Callable[[str], Path]) -> Any:
    """Of four channels of latents, and eight pixels to each."""
    return load_pipeline(pipeline_folder("sd1"), torch.float32).vae


@torch.inference_mode()
@pytest.mark.parametrize("sides", [(24, 16), (28, 21)])
def test_tiles_are_blended_as_diffusers_blends_them(vae: Any, sides: tuple[int, int]) -> None:
    latents = torch.randn(2, 4, *sides, generator=torch.Generator().manual_seed(1))

    def decode(part: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = vae.decode(part, return_dict=False)[0]
        return decoded

    drawn = tiling.decode(decode, latents, Tiles(above=SIDE**2, side=16))
    vae.tile_latent_min_size, vae.tile_sample_min_size = 16, SIDE
    expected = vae.tiled_decode(latents, return_dict=False)[0]
    assert drawn.shape == expected.shape == (2, 3, sides[0] * 8, sides[1] * 8)
    assert (drawn - expected).abs().max() < 1e-5
    assert (decode(latents) - expected).abs().max() > 1e-3, "tiles can be told from the whole"


def settings_of(model: Path, runtime: str = "torch") -> Settings:
    return settings_for(str(model), runtime).model_copy(update={"tile_above": SIDE})


def test_invariant_1_a_large_picture_is_diffusers_own_in_tiles_and_one_of_the_own_size_is_whole(
    pipeline_folder: Callable[[str], Path],
) -> None:
    """Alone and in a crowd: it is no matter of who else is in flight."""
    folder = pipeline_folder("sd1")
    tiled = load_model(settings_of(folder), 0, lambda detail: None)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(tiled.info.device)
    pipeline.vae.enable_tiling()
    pipeline.vae.tile_latent_min_size, pipeline.vae.tile_sample_min_size = 16, SIDE
    large = make_request("a cat", width=192, height=160, steps=2, sampler=tiled.info.sampler)
    own = make_request("a dog", width=SIDE, height=SIDE, steps=2, sampler=tiled.info.sampler)
    harness = harness_for(tiled)
    generations = [harness.submit(each) for each in (large, own, large)]
    harness.finish()
    for request, generation in zip((large, own), generations, strict=False):
        (image,) = harness.images(generation)
        expected = draw_with_pipeline(pipeline, request)
        assert np.abs(array(image) - expected).max() <= TOLERANCE
        assert np.abs(draw_alone(tiled, request) - expected).max() <= TOLERANCE

    assert tiled.info == inspect_model(settings_of(folder), 0)[0]


@pytest.mark.skipif(DEVICE != "cpu", reason="OpenVINO computes on a CPU")
def test_openvino_decodes_the_same_tiles() -> None:
    request = make_request("a cat", width=192, height=160, steps=1)
    one, other = (
        draw_alone(load_model(settings_of(Path("embedded"), each), 0, lambda detail: None), request)
        for each in ("torch", "openvino")
    )
    whole = draw_alone(load_model(settings_for("embedded"), 0, lambda detail: None), request)
    assert np.abs(one - other).max() <= TOLERANCE
    assert np.abs(one - whole).max() > TOLERANCE


def test_the_limit_is_told_before_the_model_is_loaded() -> None:
    described, _ = inspect_model(settings_of(EMBEDDED_PATH), 0)
    plain, _ = inspect_model(settings_for(str(EMBEDDED_PATH)), 0)
    assert (described.tiled_above, plain.tiled_above) == (SIDE**2, 0)
    assert plain.revision == described.revision, "smaller pictures are the same"


def test_what_a_device_has_memory_for_is_decoded_whole() -> None:
    """Of Stable Diffusion in half precision some five hundred pixels a side to a gigabyte."""
    small, large = (tiles_for(SD, None, room * GIB, 2) for room in (1, 16))
    assert 512**2 < small.above < 768**2
    assert large.above == pytest.approx(16 * small.above, rel=0.01)
    assert (small.side, small.factor) == (64, 8)
    assert tiles_for(SD, None, None, 2) == WHOLE
    assert tiles_for({"latent_channels": 16}, None, GIB, 2) == WHOLE, "nobody knows its layers"
    # The weights alone are more than there is: whatever can be is drawn in the smallest pieces.
    assert tiles_for(SD, None, -1, 2).above == 1


def test_a_setting_decides_whatever_memory_there_is() -> None:
    assert tiles_for(SD, 768, GIB, 4).above == 768**2
    assert tiles_for(SD, 0, 1, 4) == WHOLE
    assert tiles_for({**SD, "sample_size": 1024}, 1024, None, 4).side == 64
    assert tiles_for({**SD, "sample_size": 90}, 1024, None, 4).side == 16


def test_a_card_with_little_memory_decodes_smaller_pictures_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_for("embedded")
    found = []
    for total in (1 << 26, 1 << 40):
        monkeypatch.setattr(devices, "total_memory", lambda device, total=total: total)
        checkpoint, _ = checkpoint_of(
            settings, EMBEDDED_PATH, torch.device("cpu"), torch.float32, lambda detail: None
        )
        found.append(checkpoint.tiles.above)
    assert 0 < found[0] < 256**2 < found[1]


def test_a_pipeline_that_draws_by_itself_takes_its_own_tiles(vae: Any) -> None:
    class Pipeline:
        def __init__(self) -> None:
            self.vae, self.vae_scale_factor = vae, 8

    pipeline, whole = Pipeline(), vae.decode
    vae.tile_latent_min_size, vae.tile_sample_min_size = 16, SIDE
    tile_own(pipeline, Tiles(above=SIDE**2))
    try:
        for sides, in_tiles in (((16, 16), False), ((24, 16), True), ((16, 16), False)):
            pipeline.vae.decode(torch.zeros(1, 4, *sides), return_dict=False)
            assert vae.use_tiling is in_tiles
    finally:
        vae.decode = whole
        vae.disable_tiling()


def test_the_folder_needs_no_autoencoder_of_a_known_kind(tmp_path: Path) -> None:
    """Models without one, as those that draw in pixels, are drawn whole."""
    for file in EMBEDDED_PATH.iterdir():
        if file.name != "vae":
            (tmp_path / file.name).symlink_to(file)
    checkpoint, _ = checkpoint_of(
        settings_of(tmp_path), tmp_path, torch.device("cpu"), torch.float32, lambda detail: None
    )
    assert checkpoint.tiles == WHOLE
