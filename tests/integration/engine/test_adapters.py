"""Adapters as rows: each picture is that of diffusers with the same adapters alone, whatever the others take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from tests import loras
from tests.doubles import make_request
from tests.integration.engine.conftest import (
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
    submitted_in_turn,
)
from tests.integration.engine.general_pipelines import save
from tests.integration.engine.pipelines import draw_with_pipeline
from text2image.core.errors import InvalidRequest
from text2image.core.loras import chosen
from text2image.core.messages import GeneratedImage, LoraWeight, Request, Sampler
from text2image.engine.models.inspection import inspect_folders
from text2image.engine.models.loading import load_model
from text2image.engine.samplers.registry import scheduler_for

pytest.importorskip("peft", reason="diffusers adds adapters by PEFT")
Folders = Callable[[str], Path]
PIPELINES: dict[str, Any] = {
    "sd1": StableDiffusionPipeline,
    "xl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
    "flux-dev": FluxPipeline,
}
FLOWS = ("sd3", "flux-dev")
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

    def __init__(self, kind: str, folder: Path, adapters: Path) -> None:
        self._make = PIPELINES[kind]
        self._folder = folder
        plain = self._make.from_pretrained(folder)
        self._kind = kind
        self.files = _flow_files(kind, plain) if kind in FLOWS else _unet_files(plain)
        for name, file in self.files.items():
            loras.save(adapters, name, file)
        self.settings = settings_for(str(folder)).model_copy(update={"loras": adapters})
        self.model: Any = load_model(self.settings, 0, lambda detail: None)
        for info in self.model.info.loras:
            lora = LoraWeight(info.name, 1.0, info.hash)
            self.model.adapters.put(lora, self.model.adapters.read(lora))

    def requests(self) -> list[Request]:
        size = {"width": 64, "height": 64, "steps": 3}
        return [
            replace(
                make_request(f"a fox {seed}", seed=seed, **{**size, **more, **self._more}),
                loras=self.chosen(weights),
            )
            for seed, (weights, more) in enumerate(ASKED)
        ]

    @property
    def _more(self) -> dict[str, Any]:
        if self._kind not in FLOWS:
            return {}
        none = {"negative_prompt": ""} if self._kind == "flux-dev" else {}
        return {"sampler": Sampler.FLOW_EULER, **none}

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


def _unet_files(plain: Any) -> dict[str, loras.Tensors]:
    return {
        "peft": loras.invent(plain, rank=4, seed=1),
        "kohya": loras.as_kohya(loras.invent(plain, rank=8, seed=2)),
        "locon": loras.as_kohya(loras.invent(plain, rank=8, seed=3, convs=4)),
        "unet": loras.invent(plain, rank=2, seed=4, parts=("unet",)),
    }


def _flow_files(kind: str, plain: Any) -> dict[str, loras.Tensors]:
    """By the same names; kohya's format is read for Flux alone, and in place of LoCon there is XLabs'."""
    parts = loras.FLOW_PARTS if kind == "sd3" else loras.FLOW_PARTS[:2]
    files = {
        "peft": loras.invent(plain, rank=4, seed=1, parts=parts),
        "unet": loras.invent(plain, rank=2, seed=4, parts=parts[:1]),
    }
    if kind == "sd3":
        others = (loras.invent(plain, rank=8, seed=seed, parts=parts) for seed in (2, 3))
    else:
        others = iter(loras.flux_files(plain, rank=8, seed=2))
    return files | dict(zip(("kohya", "locon"), others, strict=True))


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
    generations = submitted_in_turn(harness, requests, every=2)
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


def test_adapters_leave_weights_and_batches_without_them_as_they_were(case: Case) -> None:
    plain, adapted = case.requests()[0], case.requests()[1]
    network = case.model.adapters.opening().network
    weights = {name: each.clone() for name, each in network.state_dict().items()}
    before = draw_alone(case.model, plain)
    assert off(draw_alone(case.model, adapted), before) > 10
    assert off(draw_alone(case.model, plain), before) == 0
    assert all(torch.equal(each, weights[name]) for name, each in network.state_dict().items())
    # What executes batches without adapters has the same weights, and no hook of these.
    own = case.model._networks._unet
    assert any(module._forward_hooks for module in network.modules())
    assert not any(module._forward_hooks for module in own.modules())
    shared = {each.data_ptr() for each in own.parameters()}
    assert all(each.data_ptr() in shared for each in network.parameters())


def test_a_row_with_adapters_is_planned_as_more_work(case: Case) -> None:
    plain, adapted = (
        replace(case.requests()[1], loras=named) for named in ((), case.requests()[1].loras)
    )
    assert case.model.plan(adapted).load > case.model.plan(plain).load
    assert case.model.plan(adapted).key == case.model.plan(plain).key
    harness = harness_for(case.model)
    (sample,) = harness.submit(adapted).samples
    harness.loop.tick()
    assert sample.load > 1
    harness.finish()


def test_an_adapter_that_leaves_takes_its_hooks_along(case: Case) -> None:
    request = case.requests()[1]
    (lora,) = request.loras
    first = draw_alone(case.model, request)
    case.model.adapters.drop(lora)
    network = case.model.adapters.opening().network
    assert not any(module._forward_hooks for module in network.modules())
    case.model.adapters.put(lora, case.model.adapters.read(lora))
    assert off(draw_alone(case.model, request), first) == 0


def test_a_family_that_takes_no_adapters_says_so(tmp_path: Path) -> None:
    settings = settings_for(str(save("AuraFlowPipeline", tmp_path)))
    model = load_model(settings.model_copy(update={"loras": tmp_path}), 0, lambda detail: None)
    assert model.info.loras == ()
    with pytest.raises(InvalidRequest, match="AuraFlowPipeline has no adapters"):
        chosen([LoraWeight("ink")], model.info)


def test_adapters_are_known_before_the_model_is_loaded(case: Case) -> None:
    folders = inspect_folders(case.settings)
    assert folders["loras"].look() == case.model.info.loras
