"""Pictures that are decoded in tiles: as diffusers does it, by their size alone, and no others."""

from __future__ import annotations

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


@pytest.fixture(scope="module")
def vae() -> Any:
    return load_pipeline(EMBEDDED_PATH, torch.float32).vae


@torch.inference_mode()
@pytest.mark.parametrize("sides", [(24, 16), (16, 40), (28, 21)])
def test_tiles_are_blended_as_diffusers_blends_them(vae: Any, sides: tuple[int, int]) -> None:
    latents = torch.randn(2, 8, *sides, generator=torch.Generator().manual_seed(1))

    def decode(part: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = vae.decode(part, return_dict=False)[0]
        return decoded

    drawn = tiling.decode(decode, latents, Tiles(above=SIDE**2, side=16))
    vae.tile_latent_min_size, vae.tile_sample_min_size = 16, SIDE
    expected = vae.tiled_decode(latents, return_dict=False)[0]
    assert drawn.shape == expected.shape == (2, 3, sides[0] * 8, sides[1] * 8)
    assert (drawn - expected).abs().max() < 1e-5
    assert (decode(latents) - expected).abs().max() > 1e-3, "tiles can be told from the whole"


def settings_of(runtime: str) -> Settings:
    return settings_for("embedded", runtime).model_copy(update={"tile_above": SIDE})


@pytest.fixture(scope="module", params=("torch", "openvino") if DEVICE == "cpu" else ("torch",))
def tiled(request: pytest.FixtureRequest) -> Any:
    return load_model(settings_of(request.param), 0, lambda detail: None)


def test_a_large_picture_is_diffusers_own_with_tiling_and_one_of_the_own_size_without(
    tiled: Any,
) -> None:
    """Alone and in a crowd: it is no matter of who else is in flight."""
    pipeline = StableDiffusionPipeline.from_pretrained(EMBEDDED_PATH, safety_checker=None)
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


def test_the_limit_is_told_and_known_before_the_model_is_loaded(tiled: Any) -> None:
    described, _ = inspect_model(settings_of("torch"), 0)
    assert tiled.info.tiled_above == described.tiled_above == SIDE**2
    plain, _ = inspect_model(settings_for("embedded"), 0)
    assert plain.tiled_above == 0
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
    for total in (1 << 27, 1 << 40):
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
            pipeline.vae.decode(torch.zeros(1, 8, *sides), return_dict=False)
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
        settings_of("torch"), tmp_path, torch.device("cpu"), torch.float32, lambda detail: None
    )
    assert checkpoint.tiles == WHOLE
