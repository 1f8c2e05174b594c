"""Upscalers: pictures equal to spandrel's own, whole and in tiles, alone and in a crowd; their files are data."""

from __future__ import annotations

import pickle
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.init_images import init_image, pixels
from tests.integration.engine.conftest import (
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
    submitted_in_turn,
)
from tests.upscalers import make_upscaler
from text2image.core.catalogue import upscaler_entries
from text2image.core.errors import Cancelled, InvalidRequest
from text2image.core.init_image import InitImage
from text2image.core.messages import Progress, Request, StreamOptions
from text2image.core.upscalers import OVERLAP, enlarging, info_of, sizes_of, spread, steps_of
from text2image.engine.upscalers.files import NotAnUpscaler, read
from text2image.engine.upscalers.model import Upscaler, load

SIZES = ((64, 48), (200, 150), (96, 97), (300, 40))
# Damaged files of each kind that are looked at.
CASES = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("upscalers")
    make_upscaler(made / "Twice.safetensors")
    make_upscaler(made / "four times.pth", scale=4)
    return made


def loaded(folder: Path, name: str) -> Upscaler:
    settings = settings_for("embedded").model_copy(update={"upscalers": folder})
    return load(upscaler_entries(settings)[f"upscaler:{name}"], settings, 0, lambda detail: None)


@pytest.fixture(scope="module")
def twice(folder: Path) -> Upscaler:
    return loaded(folder, "Twice")


def asked(model: Upscaler, size: tuple[int, int], seed: int = 0) -> Request:
    return enlarging(info_of(model.info), init_image(size, seed=seed))


def by_spandrel(path: Path, image: InitImage) -> np.ndarray:
    """What spandrel makes of a whole picture in one call."""
    descriptor = read(path)
    whole = torch.from_numpy(pixels(image).copy()).movedim(-1, 0)[None] / 255
    drawn = descriptor(whole)[0].movedim(0, -1) * 255
    return np.asarray(drawn.round().to(torch.int16))


@pytest.mark.parametrize("size", SIZES)
def test_tiles_make_what_the_network_makes_of_the_whole_picture(
    folder: Path, twice: Upscaler, size: tuple[int, int]
) -> None:
    drawn = draw_alone(twice, asked(twice, size))
    whole = by_spandrel(folder / "Twice.safetensors", init_image(size))
    assert drawn.shape == (2 * size[1], 2 * size[0], 3)
    assert abs(drawn - whole).max() <= TOLERANCE
    assert whole.std() > 20


def test_a_pickle_of_numbers_alone_is_read_too_and_told_with_its_scale(folder: Path) -> None:
    model = loaded(folder, "four times")
    told = info_of(model.info)
    assert (told.name, told.scale) == ("four times", 4)
    drawn = draw_alone(model, asked(model, (30, 20)))
    whole = by_spandrel(folder / "four times.pth", init_image((30, 20)))
    assert abs(drawn - whole).max() <= TOLERANCE


def test_pictures_that_join_each_other_are_as_if_alone(twice: Upscaler) -> None:
    requests = [asked(twice, size, seed) for seed, size in enumerate((*SIZES, *SIZES[1:3]))]
    harness = harness_for(twice)
    generations = submitted_in_turn(harness, requests, 2)
    harness.finish()
    for request, generation in zip(requests, generations, strict=True):
        (image,) = harness.images(generation)
        assert abs(array(image) - draw_alone(twice, request)).max() <= TOLERANCE


def test_progress_counts_tiles_and_a_cancelled_picture_ends_at_the_next_one(
    twice: Upscaler,
) -> None:
    request, harness = asked(twice, (200, 150)), harness_for(twice)
    watched = harness.submit(request, options=StreamOptions(progress_every=1))
    cancelled = harness.submit(request)
    (sample,) = cancelled.samples
    harness.loop.tick()
    harness.loop.cancel(cancelled)
    harness.finish()
    told = [each for each in harness.outcomes[watched] if isinstance(each, Progress)]
    assert request.steps == 6
    assert {each.steps for each in told} == {6}
    assert told[-1].step == 6
    assert sample.step == 1
    assert isinstance(harness.ending(cancelled), Cancelled)


def test_what_is_too_large_is_refused_before_any_work(twice: Upscaler) -> None:
    image = InitImage(2100, 2100, digest="", rgb=b"")
    with pytest.raises(InvalidRequest, match="4200x4200 pixels"):
        twice.plan(enlarging(info_of(twice.info), image))


@given(length=st.integers(1, 5000), tile=st.integers(2 * OVERLAP, 300))
def test_tiles_cover_a_side_and_share_their_edges(length: int, tile: int) -> None:
    tiles = spread(length, tile)
    assert tiles[0] == (0, 0)
    assert tiles[-1][0] + min(length, tile) == length
    for (before, _), (begin, over) in pairwise(tiles):
        assert over == before + tile - begin
        assert OVERLAP <= over < tile


@given(width=st.integers(1, 900), height=st.integers(1, 900), by=st.floats(0.5, 8))
def test_a_picture_is_enlarged_until_it_is_large_enough(
    width: int, height: int, by: float, twice: Upscaler
) -> None:
    info, final = info_of(twice.info), (max(1, int(width * by)), max(1, int(height * by)))
    sizes = sizes_of(info, (width, height), final)
    assert len(sizes) <= 3
    assert bool(sizes) == (width < final[0] or height < final[1])
    for number, size in enumerate(sizes):
        assert size == (width * 2**number, height * 2**number)
        assert 1 <= steps_of(info, size) <= 150


# Files are data.


def fault_of(path: Path) -> str:
    with pytest.raises(NotAnUpscaler) as error:
        read(path)
    return str(error.value)


def test_no_pickle_is_ever_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("gone off").touch, ())

    torch.save({"params_ema": {"model.0.weight": Bomb()}}, tmp_path / "zip.pth")
    torch.save({"model.0.weight": torch.ones(2), "more": Bomb()}, tmp_path / "mixed.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "named.safetensors").write_bytes(pickle.dumps(Bomb()))
    for path in list(tmp_path.iterdir()):
        assert fault_of(path)
    assert not (tmp_path / "gone off").exists()


def test_what_is_no_upscaler_is_told_with_its_reason(folder: Path, tmp_path: Path) -> None:
    good = load_file(folder / "Twice.safetensors")
    first = next(iter(good))
    odd: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "another network": ({"unet.weight": torch.ones(2, 2)}, "spandrel knows"),
        "half of it": ({name: good[name] for name in list(good)[:-2]}, "no upscaler"),
        "not finite": ({**good, first: good[first] * float("nan")}, "not finite"),
        "a billion blocks": (
            {**good, "model.1.sub.999999999.RDB1.conv1.0.weight": torch.ones(1)},
            "names or shapes",
        ),
        "no numbers": ({**good, first: torch.ones(0, 3)}, "names or shapes"),
    }
    for name, (state, reason) in odd.items():
        path = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, path)
        assert reason in fault_of(path)


@pytest.mark.parametrize("name", ["Twice.safetensors", "four times.pth"])
def test_damaged_files_are_read_or_told_as_such(folder: Path, tmp_path: Path, name: str) -> None:
    whole, rng = (folder / name).read_bytes(), random.Random(name)
    path, faults = tmp_path / name, 0
    for _ in range(CASES):
        path.write_bytes(damaged(whole, rng))
        fault = fault_or_nothing(path)
        assert fault.isprintable()
        faults += bool(fault)
    assert faults > CASES // 2


def fault_or_nothing(path: Path) -> str:
    try:
        read(path)
    except NotAnUpscaler as error:
        return str(error)
    return ""


def damaged(whole: bytes, rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return whole[: rng.randrange(len(whole))]
        case 1:
            # Where names and shapes are.
            at = rng.randrange(3000)
            return whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :]
        case 2:
            # Where a zip file keeps its own.
            at = len(whole) - 1 - rng.randrange(3000)
            return whole[:at] + rng.randbytes(2) + whole[at + 2 :]
        case _:
            return rng.choice([b"", b"PK\x03\x04", rng.randbytes(200), b"\x80\x02}q\x00."])
