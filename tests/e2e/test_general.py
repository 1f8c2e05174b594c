"""A server draws with a pipeline that it has no file for, whose sampler is one of its own, over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from diffusers import SanaSprintPipeline

from tests.e2e.dialects import SECONDS
from tests.e2e.harness import Server, serving
from tests.e2e.test_pictures import image_of
from tests.integration.engine.general_pipelines import save

TOLERANCE = 2
SIDES = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("SanaSprintPipeline", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("server")
    with serving(Server(place, T2I_MODEL=str(folder), T2I_MAX_SIDE="64")) as running:
        yield running


def asked(server: Server, text: str, **more: Any) -> httpx.Response:
    body = {"text": text, **SIDES, **more}
    return httpx.post(f"{server.url}/generate", json=body, timeout=SECONDS)


def test_a_server_draws_the_pipelines_pictures_in_a_crowd(server: Server, folder: Path) -> None:
    requests = [("a red fox", 2, 1), ("an owl", 4, 2), ("a tree", 3, 3)]
    with ThreadPoolExecutor(len(requests)) as clients:
        answers = list(
            clients.map(lambda each: asked(server, each[0], steps=each[1], seed=each[2]), requests)
        )
    pipeline = SanaSprintPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    for (text, steps, seed), answer in zip(requests, answers, strict=True):
        assert answer.status_code == 200, answer.text
        png = base64.b64decode(answer.json()["images"][0]["image_base64"])
        expected = pipeline(
            text,
            **SIDES,
            num_inference_steps=steps,
            intermediate_timesteps=1.3 if steps == 2 else None,
            use_resolution_binning=False,
            output_type="np",
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]
        picture = np.asarray(image_of(png).convert("RGB"), np.int16)
        assert np.abs(picture - (expected * 255).round()).max() <= TOLERANCE, text


def test_a_server_says_what_it_draws_with(server: Server) -> None:
    with server.client() as client:
        info = client.model()
    assert (info.family, info.steps, info.sampler) == ("general", 2, "scm")
    assert info.samplers == ("scm",)


def test_what_the_pipeline_does_not_take_is_refused_by_its_name(server: Server) -> None:
    answer = asked(server, "a cat", negative_prompt="a dog")
    assert answer.status_code == 400
    assert "negative_prompt: is not read by this model" in answer.text
    assert asked(server, "a cat", sampler="euler").status_code == 400
