"""Flux.1 dev and schnell: the pictures of diffusers' own pipeline, alone, in a crowd, and joining mid-flight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.doubles import make_request
from tests.integration.engine.conftest import (
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
    submitted_in_turn,
)
from tests.integration.engine.pipelines import FLUX_KINDS, Reference
from text2image.core.errors import InvalidRequest
from text2image.core.messages import Quality, Request, Sampler, Schedule
from text2image.engine.models.contract import Model
from text2image.engine.models.loading import load_model

Folders = Callable[[str], Path]


def ask(prompt: str = "a red fox", **more: Any) -> Request:
    usual = {"width": 64, "height": 64, "sampler": Sampler.FLOW_EULER}
    return make_request(prompt, **{**usual, **more})


def loaded(folder: Path, runtime: str = "torch", **changes: Any) -> Model:
    settings = settings_for(str(folder), runtime).model_copy(update=changes)
    return load_model(settings, 0, lambda detail: None)


def off(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


CROWD = [
    # As long as the second encoder needs to be heard over its padding, longer than the first one reads.
    ask("a fox in a blue wood " * 20, seed=1, steps=4, guidance_scale=3.5),
    ask("a cat", seed=2, steps=7, guidance_scale=1.0),
    ask("a dog", seed=3, steps=1, guidance_scale=0.0),
    ask("a car", seed=4, steps=5, guidance_scale=9.0),
    ask("a tree", seed=5, steps=6, guidance_scale=2.0, schedule=Schedule.KARRAS),
    ask("a fish", seed=6, steps=3, width=96, height=64),
    ask("a boat", seed=7, steps=4, width=96, height=64, guidance_scale=6.0),
]


@pytest.mark.parametrize("kind", FLUX_KINDS)
def test_invariant_1_pictures_of_a_crowd_that_join_mid_flight_are_the_pipelines(
    pipeline_folder: Folders, kind: str
) -> None:
    model, reference = loaded(pipeline_folder(kind)), Reference(pipeline_folder(kind))
    harness = harness_for(model, cap=4)
    generations = submitted_in_turn(harness, CROWD, every=2)
    harness.finish()
    for request, generation in zip(CROWD, generations, strict=True):
        (image,) = harness.images(generation)
        assert off(array(image), reference.draw(request)) <= TOLERANCE, request
        assert off(array(image), draw_alone(model, request)) <= TOLERANCE, request


def test_openvino_draws_what_torch_draws(
    pipeline_folder: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2I_CACHE_DIR", str(tmp_path))
    folder = pipeline_folder("flux-dev")
    one, other = loaded(folder, "openvino"), loaded(folder)
    for request in CROWD[::5]:
        assert off(draw_alone(one, request), draw_alone(other, request)) <= TOLERANCE


def test_a_picture_depends_on_its_prompt_in_both_encoders_and_on_its_scale(
    pipeline_folder: Folders,
) -> None:
    """Or the comparisons with diffusers would prove little."""
    reference, request = Reference(pipeline_folder("flux-dev")), ask(steps=4)
    plain = reference.draw(request)
    assert off(plain, reference.draw(request, prompt_2="a blue sea " * 30)) > 5 * TOLERANCE
    for other in (ask("a blue sea", steps=4), ask(steps=4, guidance_scale=1.0)):
        assert off(plain, reference.draw(other)) > 5 * TOLERANCE


@pytest.mark.parametrize(
    ("kind", "steps", "scale"), [("flux-dev", 28, 3.5), ("flux-schnell", 4, 0.0)]
)
def test_defaults_suit_the_kind(
    pipeline_folder: Folders, kind: str, steps: int, scale: float
) -> None:
    model = loaded(pipeline_folder(kind))
    info = model.info
    assert (info.family, info.steps, info.guidance_scale) == ("flux", steps, scale)
    assert info.samplers == (Sampler.FLOW_EULER,), "no other takes the model's noise levels"
    assert (info.width, info.max_prompt_tokens) == (1024, 512)
    assert (info.fast, info.side_multiple) == ("", 16)
    fast, exact = (model.plan(ask(quality=quality)) for quality in Quality)
    assert fast == exact
    assert exact.rows == 1


def test_a_negative_prompt_that_nothing_reads_is_refused(pipeline_folder: Folders) -> None:
    with pytest.raises(InvalidRequest, match="negative_prompt: is not read by this model"):
        loaded(pipeline_folder("flux-schnell")).plan(ask(negative_prompt="blue"))


@pytest.mark.parametrize("kind", FLUX_KINDS)
def test_a_negative_prompt_is_a_second_row_of_its_own_scale_beside_pictures_without(
    pipeline_folder: Folders, kind: str
) -> None:
    folder = pipeline_folder(kind)
    model, reference = loaded(folder, true_cfg_scale=2.5), Reference(folder)
    plain = loaded(folder)
    assert model.info.revision != plain.info.revision
    guided = ask("a fox in a wood " * 20, seed=1, negative_prompt="a blue sea " * 20)
    requests = [guided, ask("a cat", seed=2, steps=3), ask("an owl", seed=3, negative_prompt=" ")]
    assert [model.plan(each).rows for each in requests] == [2, 1, 1]
    harness = harness_for(model)
    generations = [harness.submit(each) for each in requests]
    harness.finish()
    pictures = [array(*harness.images(each)) for each in generations]
    expected = [
        reference.draw(requests[0], true_cfg_scale=2.5),
        *(reference.draw(replace(each, negative_prompt="")) for each in requests[1:]),
    ]
    for picture, own in zip(pictures, expected, strict=True):
        assert off(picture, own) <= TOLERANCE
    assert off(expected[0], reference.draw(guided)) > 5 * TOLERANCE
    assert off(draw_alone(model, requests[1]), draw_alone(plain, requests[1])) == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", FLUX_KINDS)
def test_in_half_precision_a_picture_stays_close(
    pipeline_folder: Folders, kind: str, dtype: str
) -> None:
    settings = settings_for(str(pipeline_folder(kind))).model_copy(update={"dtype": dtype})
    half, full = load_model(settings, 0, lambda detail: None), loaded(pipeline_folder(kind))
    # Of no guidance, which would enlarge what rounding does.
    request = ask(steps=3, guidance_scale=0.0)
    assert np.abs(draw_alone(half, request) - draw_alone(full, request)).mean() < 8
