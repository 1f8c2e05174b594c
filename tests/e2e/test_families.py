"""A server with a model of another family draws what diffusers draws, in a crowd of its kind, over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from diffusers import DiffusionPipeline

from tests.doubles import make_request
from tests.e2e.dialects import SECONDS
from tests.e2e.harness import Server, serving
from tests.e2e.test_pictures import image_of
from tests.integration.engine.pipelines import draw_with_pipeline, save_pipeline
from text2image.core.messages import Request, Sampler
from text2image.engine.samplers.registry import scheduler_for

TOLERANCE = 2
REQUESTS = [
    make_request("a red fox", steps=6, seed=1, sampler=Sampler.EULER),
    make_request("a cat", steps=3, seed=2, sampler=Sampler.DPMPP_2M, negative_prompt="a dog"),
    make_request("a car", steps=8, seed=3, sampler=Sampler.EULER_ANCESTRAL, guidance_scale=0.0),
    make_request("a tree", steps=5, seed=4, sampler=Sampler.HEUN, guidance_scale=9.0),
    make_request("a fish", steps=4, seed=5, sampler=Sampler.UNIPC, width=96, height=64),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("xl", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(Server(tmp_path_factory.mktemp("server"), T2I_MODEL=str(folder))) as running:
        yield running


@pytest.fixture(scope="module")
def expected(folder: Path) -> Callable[[Request], np.ndarray]:
    pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config

    def draw(request: Request) -> np.ndarray:
        pipeline.scheduler = scheduler_for(request.sampler, config, None)
        return draw_with_pipeline(pipeline, request)

    return draw


def drawn(server: Server, request: Request) -> np.ndarray:
    names = ("negative_prompt", "width", "height", "steps", "guidance_scale", "seed", "sampler")
    body = {"text": request.prompt, **{name: getattr(request, name) for name in names}}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    png = base64.b64decode(answer.json()["images"][0]["image_base64"])
    return np.asarray(image_of(png).convert("RGB"), np.int16)


def test_an_sdxl_server_draws_the_pipelines_pictures_at_once(
    server: Server, expected: Callable[[Request], np.ndarray]
) -> None:
    with ThreadPoolExecutor(len(REQUESTS)) as clients:
        pictures = list(clients.map(lambda request: drawn(server, request), REQUESTS))
    for request, picture in zip(REQUESTS, pictures, strict=True):
        assert np.abs(picture - expected(request)).max() <= TOLERANCE, request


def test_an_sdxl_server_says_what_it_draws_with(server: Server) -> None:
    with server.client() as client:
        info = client.model()
    assert (info.family, info.width, info.steps) == ("stable-diffusion-xl", 128, 30)
