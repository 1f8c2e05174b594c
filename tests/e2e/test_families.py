"""A server with a model of another family draws what diffusers draws, in a crowd of its kind, over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.doubles import make_request
from tests.e2e.dialects import SECONDS
from tests.e2e.harness import Server, serving
from tests.e2e.test_pictures import image_of
from tests.integration.engine.pipelines import Reference, save_pipeline
from text2image.core.messages import Request, Sampler

TOLERANCE = 2
FLOW = {"sampler": Sampler.FLOW_EULER}
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
}
TOLD = {
    "xl": ("stable-diffusion-xl", 30, Sampler.EULER),
    "sd3": ("stable-diffusion-3", 28, *FLOW.values()),
}


@pytest.fixture(scope="module", params=REQUESTS)
def kind(request: pytest.FixtureRequest) -> str:
    named: str = request.param
    return named


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(kind, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On whatever executes the networks if nothing is set."""
    with serving(Server(tmp_path_factory.mktemp("server"), T2I_MODEL=str(folder))) as running:
        yield running


def drawn(server: Server, request: Request, **more: Any) -> np.ndarray:
    names = ("negative_prompt", "width", "height", "steps", "guidance_scale", "seed", "sampler")
    body = {"text": request.prompt, **{name: getattr(request, name) for name in names}, **more}
    answer = httpx.post(f"{server.url}/generate", json=body, timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    png = base64.b64decode(answer.json()["images"][0]["image_base64"])
    return np.asarray(image_of(png).convert("RGB"), np.int16)


def test_a_server_draws_the_pipelines_pictures_in_a_crowd(
    kind: str, server: Server, folder: Path
) -> None:
    requests, reference = REQUESTS[kind], Reference(folder)
    with ThreadPoolExecutor(len(requests)) as clients:
        pictures = list(clients.map(lambda request: drawn(server, request), requests))
    for request, picture in zip(requests, pictures, strict=True):
        assert np.abs(picture - reference.draw(request)).max() <= TOLERANCE, request


def test_a_server_says_what_it_draws_with(kind: str, server: Server) -> None:
    with server.client() as client:
        info = client.model()
    assert (info.family, info.steps, info.sampler) == TOLD[kind]


def test_a_side_that_only_some_families_draw_is_refused_by_its_name(
    kind: str, server: Server
) -> None:
    answer = httpx.post(
        f"{server.url}/generate", json={"text": "a cat", "width": 72, "steps": 1}, timeout=SECONDS
    )
    if kind == "sd3":
        assert answer.status_code == 400
        assert "width: is 72 pixels; it must be a multiple of 16" in answer.text
    else:
        assert answer.status_code == 200
