"""A server draws with models of other families, and with a pipeline that it has no file for, what diffusers draws."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from tests.doubles import make_request
from tests.e2e.dialects import SECONDS
from tests.e2e.harness import Server, eventually, serving
from tests.e2e.test_pictures import image_of
from tests.integration.engine import general_pipelines
from tests.integration.engine.pipelines import draw_with_pipeline, save_pipeline
from text2image.core.messages import Request, Sampler
from text2image.engine.runtimes.conversion import ship
from text2image.engine.samplers.registry import scheduler_for

TOLERANCE = 2
FLOW = {"sampler": Sampler.FLOW_EULER}
SPRINT = {"sampler": Sampler.named("scm"), "width": 64, "height": 64}
# Of the last one the sampler is its own, and its scale is an input.
GENERAL = "SanaSprintPipeline"
REQUESTS = {
    "xl": [
        make_request("a red fox", steps=6, seed=1, sampler=Sampler.EULER),
        make_request("a cat", steps=3, seed=2, negative_prompt="a dog"),
        make_request("a car", steps=8, seed=3, sampler=Sampler.EULER_ANCESTRAL, guidance_scale=0.0),
        make_request("a tree", steps=5, seed=4, sampler=Sampler.HEUN, guidance_scale=9.0),
        make_request("a fish", steps=4, seed=5, sampler=Sampler.UNIPC, width=96, height=64),
    ],
    "sd3": [
        make_request("a red fox", steps=6, seed=1, **FLOW),
        make_request("a cat", steps=3, seed=2, negative_prompt="a dog", **FLOW),
        make_request("a car", steps=8, seed=3, guidance_scale=0.0, **FLOW),
        make_request("a tree", steps=5, seed=4, guidance_scale=9.0, sampler=Sampler.FLOW_HEUN),
        make_request("a fish", steps=4, seed=5, width=96, height=64, **FLOW),
    ],
    GENERAL: [
        make_request("a red fox", steps=2, seed=1, guidance_scale=4.5, **SPRINT),
        make_request("an owl", steps=4, seed=2, guidance_scale=4.5, **SPRINT),
        make_request("a tree", steps=3, seed=3, guidance_scale=4.5, **SPRINT),
    ],
}
TOLD = {
    "xl": ("stable-diffusion-xl", 30, Sampler.EULER),
    "sd3": ("stable-diffusion-3", 28, *FLOW.values()),
    GENERAL: ("general", 2, "scm"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_pipeline("xl", folder)
    # Converted before, which takes a process less than a server that does it when it loads the model.
    ship(save_pipeline("sd3", folder))
    general_pipelines.save(GENERAL, folder)
    return folder


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """All of them, on whatever executes the networks if nothing is set."""
    folder = tmp_path_factory.mktemp("server")
    settings = {"T2I_MODEL": "xl", "T2I_MODELS": str(models), "T2I_MAX_SIDE": "128"}
    with serving(Server(folder, **settings)) as running, running.client() as client:
        eventually(lambda: {each.id for each in client.models()} == set(TOLD), "all are known")
        yield running


@pytest.fixture(scope="module")
def pipeline_of(models: Path) -> Callable[[str], Any]:
    """Diffusers' own pipeline of a kind."""

    @cache
    def pipeline(kind: str) -> Any:
        loaded: Any = DiffusionPipeline.from_pretrained(models / kind)
        loaded.set_progress_bar_config(disable=True)
        return loaded

    return pipeline


def expected(kind: str, pipeline: Any, request: Request) -> np.ndarray:
    if kind != GENERAL:
        pipeline.scheduler = scheduler_for(request.sampler, pipeline.scheduler.config, None)
        return draw_with_pipeline(pipeline, request)
    picture = pipeline(
        request.prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.steps,
        intermediate_timesteps=1.3 if request.steps == 2 else None,
        use_resolution_binning=False,
        output_type="np",
        generator=torch.Generator("cpu").manual_seed(request.seed),
    ).images[0]
    drawn: np.ndarray = (picture * 255).round().astype(np.int16)
    return drawn


def asked(server: Server, kind: str, **fields: Any) -> httpx.Response:
    body = {"text": "a cat", "model": kind, **fields}
    return httpx.post(f"{server.url}/generate", json=body, timeout=SECONDS)


def drawn(server: Server, kind: str, request: Request) -> np.ndarray:
    names = ("negative_prompt", "width", "height", "steps", "guidance_scale", "seed", "sampler")
    fields = {name: getattr(request, name) for name in names}
    answer = asked(server, kind, text=request.prompt, **fields)
    assert answer.status_code == 200, answer.text
    png = base64.b64decode(answer.json()["images"][0]["image_base64"])
    return np.asarray(image_of(png).convert("RGB"), np.int16)


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_server_draws_the_pipelines_pictures_in_a_crowd(
    kind: str, server: Server, pipeline_of: Callable[[str], Any]
) -> None:
    requests = REQUESTS[kind]
    with ThreadPoolExecutor(len(requests)) as clients:
        pictures = list(clients.map(lambda request: drawn(server, kind, request), requests))
    for request, picture in zip(requests, pictures, strict=True):
        theirs = expected(kind, pipeline_of(kind), request)
        assert np.abs(picture - theirs).max() <= TOLERANCE, request


@pytest.mark.parametrize("kind", TOLD)
def test_a_server_says_what_it_draws_with(kind: str, server: Server) -> None:
    with server.client() as client:
        info = client.model(kind)
    assert (info.family, info.steps, info.sampler) == TOLD[kind]
    if kind == GENERAL:
        assert info.samplers == ("scm",)


def test_a_side_that_only_some_families_draw_is_refused_by_its_name(server: Server) -> None:
    answer = asked(server, "sd3", width=72, steps=1)
    assert answer.status_code == 400
    assert "width: is 72 pixels; it must be a multiple of 16" in answer.text
    assert asked(server, "xl", width=72, steps=1).status_code == 200


def test_what_a_pipeline_does_not_take_is_refused_by_its_name(server: Server) -> None:
    answer = asked(server, GENERAL, width=64, height=64, negative_prompt="a dog")
    assert answer.status_code == 400
    assert "negative_prompt: is not read by this model" in answer.text
    assert asked(server, GENERAL, width=64, height=64, sampler="euler").status_code == 400
