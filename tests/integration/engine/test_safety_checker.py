"""A model's own safety checker blocks what it blocks in diffusers' pipeline; what it lets pass is as without it."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkers import ALWAYS, NEVER, save_checker
from tests.doubles import make_request
from tests.integration.engine.conftest import (
    DEVICE,
    TOLERANCE,
    array,
    harness_for,
    settings_for,
)
from tests.integration.engine.pipelines import Reference
from text2image.core.errors import ContentBlocked
from text2image.core.messages import Pixels
from text2image.core.settings import Safety
from text2image.engine import devices
from text2image.engine.adapters.store import shelves_of
from text2image.engine.layouts.safety_checker import checker_bytes
from text2image.engine.loaded import LoadedModels
from text2image.engine.memory import MemoryGuard
from text2image.engine.models import safety
from text2image.engine.models.contract import Model, OutOfMemory
from text2image.engine.models.loading import load_model
from text2image.engine.models.parking import exchange
from text2image.engine.models.safety import CheckedModel
from text2image.engine.warmup import measure

REQUESTS = [make_request("a cat", steps=2, seed=seed, width=64, height=64) for seed in range(8)]
# Between the similarities that the checker finds in these.
MIXED = 0.18

Checked = Callable[[float], Path]


@pytest.fixture
def checked(pipeline_folder: Callable[[str], Path], tmp_path: Path) -> Checked:
    """Makes folders of a pipeline with a checker."""

    def folder(threshold: float) -> Path:
        target = shutil.copytree(pipeline_folder("sd1"), tmp_path / "checked")
        return save_checker(target, threshold)

    return folder


def load(folder: Path, asked: Safety = Safety.MODEL) -> Model:
    settings = settings_for(str(folder)).model_copy(update={"safety": asked})
    return load_model(settings, 0, lambda detail: None)


def test_it_blocks_what_diffusers_blocks_and_changes_nothing_else(
    checked: Checked,
) -> None:
    folder = checked(MIXED)
    harness = harness_for(load(folder))
    generations = [harness.submit(request) for request in REQUESTS]
    harness.finish()
    reference = Reference(folder)
    # Its own pipeline makes black what it blocks.
    theirs = [reference.draw(request) for request in REQUESTS]
    blocked = [not picture.any() for picture in theirs]
    assert True in blocked
    assert False in blocked
    for generation, picture, is_blocked in zip(generations, theirs, blocked, strict=True):
        if is_blocked:
            assert isinstance(harness.ending(generation), ContentBlocked)
            assert not harness.images(generation)
        else:
            (image,) = harness.images(generation)
            assert np.abs(array(image) - picture).max() <= TOLERANCE


def test_a_model_that_it_lets_draw_nothing_is_measured_all_the_same(checked: Checked) -> None:
    model = load(checked(ALWAYS))
    models = LoadedModels({model.info.id: model})
    measure(models, MemoryGuard(), max_rows=1, clock=time.monotonic, report=lambda detail: None)
    harness = harness_for(model)
    generation = harness.submit(REQUESTS[0])
    harness.finish()
    assert isinstance(harness.ending(generation), ContentBlocked)


class Drawing:
    """A picture that a device draws beside its steps."""

    def __init__(self, outcome: Pixels | Exception) -> None:
        self.outcome = outcome
        self.is_ready = False

    def ready(self) -> bool:
        return self.is_ready

    def pixels(self) -> Pixels:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class Judge:
    """Blocks what is white; has no memory for the first batch that it sees."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def blocks(self, pictures: list[Pixels]) -> list[bool]:
        self.asked.append(len(pictures))
        if len(self.asked) == 1:
            raise OutOfMemory
        return [max(each.rgb) == 255 for each in pictures]


def test_pictures_that_are_drawn_beside_steps_are_looked_at_together_when_all_are_there(
    pipeline_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(pipeline_folder("sd1"), Safety.OFF)
    dark, light = Pixels(1, 1, bytes(3)), Pixels(1, 1, b"\xff" * 3)
    drawings = [Drawing(each) for each in (light, ValueError("not finite"), dark)]
    judge: Any = Judge()
    monkeypatch.setattr(plain, "decode", lambda samples: drawings)
    model = CheckedModel(plain, judge)
    first, second, third = model.decode([None] * 3)  # type: ignore[list-item] # of samples their number counts
    assert not isinstance(first, Pixels)
    assert not isinstance(second, Pixels)
    assert not isinstance(third, Pixels)
    drawings[0].is_ready = drawings[2].is_ready = True
    assert not third.ready()
    drawings[1].is_ready = True
    assert third.ready()
    with pytest.raises(OutOfMemory):
        first.pixels()
    assert third.pixels() is dark
    with pytest.raises(ContentBlocked):
        first.pixels()
    with pytest.raises(ValueError, match="not finite"):
        second.pixels()
    assert judge.asked == [2, 2]


def test_what_a_model_has_besides_is_found_and_its_checker_moves_with_it(checked: Checked) -> None:
    folder = checked(NEVER)
    model = load(folder)
    assert isinstance(model, CheckedModel)
    assert shelves_of(model).keys() == shelves_of(model._model).keys()
    moved = []

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor.data_ptr())
        return tensor

    assert exchange(model, move)
    assert model._checker._network.concept_embeds.data_ptr() in moved
    assert checker_bytes(folder, 4) == 4 * sum(
        each.numel() for each in model._checker._network.state_dict().values()
    )


def without_one(folder: Path) -> None:
    (folder / "model_index.json").write_text(
        (folder / "model_index.json").read_text().replace('"StableDiffusionSafetyChecker"', "null")
    )


def of_another_kind(folder: Path) -> None:
    path = folder / "model_index.json"
    path.write_text(path.read_text().replace("StableDiffusionSafety", "IFSafety"))


def not_fetched(folder: Path) -> None:
    shutil.rmtree(folder / "safety_checker")


def without_weights(folder: Path) -> None:
    (folder / "safety_checker" / "model.safetensors").unlink()


def without_extractor(folder: Path) -> None:
    shutil.rmtree(folder / "feature_extractor")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (without_one, "the model has no safety checker"),
        (of_another_kind, "the model's safety checker is of the class IFSafetyChecker"),
        (not_fetched, "safety_checker/config.json is missing"),
        (without_weights, "weights of safety_checker are missing"),
        (without_extractor, "feature_extractor/preprocessor_config.json is missing"),
    ],
)
def test_without_a_checker_a_model_is_not_served_unless_the_classifier_looks(
    checked: Checked, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], told: str
) -> None:
    folder = checked(NEVER)
    spoil(folder)
    with pytest.raises(ValueError, match=f"T2I_SAFETY: model, but {told}.*; set both or classifier"):
        load(folder)
    with caplog.at_level(logging.WARNING):
        assert not isinstance(load(folder, Safety.BOTH), CheckedModel)
    assert f"T2I_SAFETY: both, but {told}" in caplog.text
    assert "the classifier alone looks at its pictures" in caplog.text
    assert checker_bytes(folder, 4) == 0


def test_a_checker_that_lacks_weights_is_told_rather_than_made_up(checked: Checked) -> None:
    folder = checked(ALWAYS)
    file = folder / "safety_checker" / "model.safetensors"
    weights = load_file(file)
    del weights["concept_embeds_weights"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="safety_checker lacks weights: concept_embeds_weights"):
        load(folder, Safety.BOTH)


def test_one_in_half_precision_alone_is_loaded(checked: Checked) -> None:
    folder = checked(ALWAYS)
    part = folder / "safety_checker"
    half = {name: each.half() for name, each in load_file(part / "model.safetensors").items()}
    (part / "model.safetensors").unlink()
    save_file(half, part / "model.fp16.safetensors", metadata={"format": "pt"})
    checker = safety.load(folder, devices.pick_device(DEVICE), torch.float32)
    assert checker is not None
    assert checker.blocks([Pixels(64, 48, bytes(64 * 48 * 3))]) == [True]
    assert checker._network.dtype == torch.float32
