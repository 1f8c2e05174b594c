"""Adapters as rows: each picture is that of diffusers with the same adapters alone, whatever the others take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from tests import loras
from tests.doubles import make_request
from tests.integration.engine.conftest import TOLERANCE, array, harness_for, settings_for
from tests.integration.engine.pipelines import draw_with_pipeline
from text2image.core.loras import chosen
from text2image.core.messages import GeneratedImage, LoraWeight, Request, Sampler
from text2image.engine.models.loading import load_model
from text2image.engine.samplers.registry import scheduler_for

pytest.importorskip("peft", reason="diffusers adds adapters by PEFT")
Folders = Callable[[str], Path]
PIPELINES = {"sd1": StableDiffusionPipeline, "xl": StableDiffusionXLPipeline}
# What each request takes, and how it is drawn besides.
ASKED: list[tuple[dict[str, float], dict[str, Any]]] = [
    ({}, {"sampler": Sampler.DDIM}),
    ({"peft": 0.8}, {"sampler": Sampler.EULER, "guidance_scale": 4.0}),
    ({"kohya": 0.5}, {"sampler": Sampler.DPMPP_2M, "negative_prompt": "a blue dog"}),
    ({"peft": 0.3, "kohya": -0.7}, {"sampler": Sampler.DDIM, "guidance_scale": 0.0}),
    ({"locon": 1.0}, {"sampler": Sampler.EULER, "steps": 2}),
    ({"unet": 1.5, "locon": 0.4}, {"sampler": Sampler.DDIM}),
    ({}, {"sampler": Sampler.EULER}),
]


class Case:
    """A tiny model with a folder of adapters, here and in diffusers."""

    def __init__(self, kind: str, folder: Path, adapters: Path, **settings: Any) -> None:
        self._make = PIPELINES[kind]
        self._folder = folder
        plain = self._make.from_pretrained(folder)
        self.files = {
            "peft": loras.invent(plain, rank=4, seed=1),
            "kohya": loras.as_kohya(loras.invent(plain, rank=8, seed=2)),
            "locon": loras.as_kohya(loras.invent(plain, rank=8, seed=3, convs=4)),
            "unet": loras.invent(plain, rank=2, seed=4, parts=("unet",)),
        }
        for name, file in self.files.items():
            loras.save(adapters, name, file)
        chosen_settings = settings_for(str(folder)).model_copy(
            update={"loras": adapters, **settings}
        )
        self.model: Any = load_model(chosen_settings, 0, lambda detail: None)
        for info in self.model.info.loras:
            lora = LoraWeight(info.name, 1.0, info.hash)
            self.model.adapters.put(lora, self.model.adapters.read(lora))

    def requests(self) -> list[Request]:
        size = {"width": 64, "height": 64, "steps": 3}
        return [
            replace(
                make_request(f"a fox {seed}", seed=seed, **{**size, **more}),
                loras=self.chosen(weights),
            )
            for seed, (weights, more) in enumerate(ASKED)
        ]

    def chosen(self, weights: dict[str, float]) -> tuple[LoraWeight, ...]:
        return chosen([LoraWeight(*each) for each in weights.items()], self.model.info)

    def references(self) -> tuple[Any, Any]:
        """Diffusers' pipeline without adapters, and with all of them loaded."""
        pipelines = [self._make.from_pretrained(self._folder) for _ in range(2)]
        for pipeline in pipelines:
            pipeline.set_progress_bar_config(disable=True)
        for name, file in self.files.items():
            pipelines[1].load_lora_weights(dict(file), adapter_name=name)
        return pipelines[0], pipelines[1]


@pytest.fixture(scope="module", params=PIPELINES)
def case(request: pytest.FixtureRequest, pipeline_folder: Folders, tmp_path_factory: Any) -> Case:
    kind = request.param
    return Case(kind, pipeline_folder(kind), tmp_path_factory.mktemp("loras"))


def drawn(harness: Any, generation: Any) -> np.ndarray:
    (image,) = harness.images(generation)
    assert isinstance(image, GeneratedImage)
    return array(image)


def off(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


def test_invariant_1_rows_with_none_one_or_several_adapters_are_the_pipelines(case: Case) -> None:
    requests = case.requests()
    assert all(not info.fault for info in case.model.info.loras)
    harness = harness_for(case.model, cap=24)
    generations = []
    for number, request in enumerate(requests):
        generations.append(harness.submit(request))
        if number % 2:
            harness.loop.tick()
    harness.finish()
    assert harness.loop.counters["batches"] < sum(request.steps for request in requests)
    plain, adapted = case.references()
    for request, generation in zip(requests, generations, strict=True):
        pipeline = adapted if request.loras else plain
        if request.loras:
            names = [each.name for each in request.loras]
            adapted.set_adapters(names, [each.weight for each in request.loras])
        pipeline.scheduler = scheduler_for(request.sampler, plain.scheduler.config, None)
        assert off(drawn(harness, generation), draw_with_pipeline(pipeline, request)) <= TOLERANCE
        if request.loras:
            plain.scheduler = pipeline.scheduler
            assert off(drawn(harness, generation), draw_with_pipeline(plain, request)) > 10
