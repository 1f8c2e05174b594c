"""The real models that these tests draw with, loaded once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.harness import NATIVE, LoopHarness
from tests.integration.engine.pipelines import save_pipeline
from text2image.core.messages import GeneratedImage, Request
from text2image.core.settings import Settings
from text2image.engine.costs import StepCosts
from text2image.engine.models.contract import Model
from text2image.engine.models.loading import EMBEDDED_PATH, load_model
from text2image.engine.sample import Generation
from text2image.engine.samplers.tables import offered

# Another one, `cuda` for instance, where there is one; at full precision, so that pictures can be compared.
DEVICE = os.environ.get("T2I_TEST_DEVICE", "cpu")

# The embedded model's own scheduler, and the samplers that it can be drawn with.
CONFIG = json.loads((EMBEDDED_PATH / "scheduler" / "scheduler_config.json").read_text())
OFFERED = offered(CONFIG)
# fp32 on a CPU: kernels may add in another order for another batch size, which shows in the last bit or two. On a card
# convolutions round to TF32 besides.
TOLERANCE = 2 if DEVICE == "cpu" else 8

RealHarness = LoopHarness[Model, Callable[[], float]]
# What a request's picture is, (height, width, 3).
Alone = Callable[[Request], np.ndarray]


def harness_for(model: Model, cap: int = 64) -> RealHarness:
    """A loop around a real model whose batches may grow to `cap` rows."""
    costs = StepCosts(NATIVE, {1: 1.0, cap: 1.0}, max_rows=cap, decode_seconds=0.01)
    return LoopHarness(model, costs, time.monotonic)


def array(image: GeneratedImage) -> np.ndarray:
    """A picture as (height, width, 3) integers wide enough to subtract."""
    pixels = image.pixels
    flat = np.frombuffer(pixels.rgb, np.uint8).astype(np.int16)
    return flat.reshape(pixels.height, pixels.width, 3)


def draw_alone(model: Model, request: Request) -> np.ndarray:
    """The picture of a request that has the engine to itself."""
    harness = harness_for(model)
    generation = harness.submit(request)
    harness.finish()
    (image,) = harness.images(generation)
    return array(image)


def submitted_in_turn(
    harness: RealHarness, requests: Sequence[Request], every: int
) -> list[Generation]:
    """Submits requests so that they join each other mid-flight, a step after every so many of them."""
    generations = []
    for number, request in enumerate(requests, 1):
        generations.append(harness.submit(request))
        if number % every == 0:
            harness.loop.tick()
    return generations


def settings_for(model: str, runtime: str = "torch") -> Settings:
    return Settings(model=model, device=DEVICE, dtype="float32", runtime=runtime)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m device` chooses the tests that draw with a real model, on whichever device that is."""
    for item in items:
        if "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.device)


@pytest.fixture(scope="session")
def device() -> str:
    """Where the real models draw."""
    return DEVICE


@pytest.fixture(scope="session", params=("torch", "openvino") if DEVICE == "cpu" else ("torch",))
def runtime(request: pytest.FixtureRequest) -> str:
    """Each runtime that the device has."""
    return str(request.param)


@pytest.fixture(scope="session")
def embedded(runtime: str, device: str) -> Model:
    """The embedded model, executed by each runtime."""
    return load_model(settings_for("embedded", runtime), 0, lambda detail: None)


@pytest.fixture(scope="session")
def alone(embedded: Model) -> Alone:
    """The embedded model's picture of a request that has the engine to itself; each is drawn once."""
    return cache(lambda request: draw_alone(embedded, request))


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory, device: str) -> Callable[[str], Path]:
    """Makes the folder of a small random pipeline, each kind once."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_pipeline(kind, tmp_path_factory.mktemp("pipelines"))
        return made[kind]

    return folder
