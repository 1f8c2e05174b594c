"""Several real models in one engine: each draws what it draws alone, within the memory that they may take."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from transformers import AutoTokenizer

from tests.doubles import make_request
from tests.integration.engine.conftest import TOLERANCE, array, draw_alone, settings_for
from tests.integration.engine.originals import original_weights, tiny_pipeline
from tests.unit.engine.test_engine import collect, until
from text2image.core.messages import GeneratedImage, ModelState, Request, State
from text2image.core.settings import Settings
from text2image.engine import manager
from text2image.engine.engine import Engine
from text2image.engine.layouts.sizes import numbers_in, weight_bytes
from text2image.engine.layouts.tokenizer import END, write_tokenizer
from text2image.engine.lazy import loader, source_of
from text2image.engine.models.inspection import inspect_model
from text2image.engine.models.loading import EMBEDDED_PATH, load_model

KINDS = ("sd2", "lcm")
NAMES = ("embedded", *KINDS)
STEPS = {"embedded": 4, "sd2": 3, "lcm": 2}


@pytest.fixture
def folder(tmp_path: Path, pipeline_folder: Callable[[str], Path]) -> Path:
    """A folder with two models."""
    for kind in KINDS:
        (tmp_path / "models" / kind).parent.mkdir(exist_ok=True)
        (tmp_path / "models" / kind).symlink_to(pipeline_folder(kind))
    return tmp_path / "models"


def settings_of(folder: Path) -> Settings:
    return settings_for("embedded").model_copy(update={"models": str(folder)})


@asynccontextmanager
async def serving(settings: Settings, model_memory: int | None = None) -> AsyncIterator[Engine]:
    engine = Engine(
        loader(settings),
        source=source_of(settings),
        model_memory=model_memory,
        max_batch_rows=8,
    )
    engine.start()
    await until(lambda: engine.status.state is not State.LOADING)
    assert engine.status.state is State.READY, engine.status.detail
    yield engine
    await engine.stop()


def asked(name: str, seed: int) -> Request:
    guidance = 5.0 if seed % 2 else 1.0
    return make_request(
        f"a {name}", steps=STEPS[name], seed=seed, model=name, guidance_scale=guidance
    )


@pytest.mark.parametrize("kind", ["sd1", "lcm", "xl", "xl-second", "sd3", "sd3-bare", "flux-dev"])
def test_a_model_is_described_before_it_is_loaded_as_it_is_after(
    pipeline_folder: Callable[[str], Path], kind: str
) -> None:
    settings = settings_for(str(pipeline_folder(kind)))
    described, _ = inspect_model(settings, 0)
    assert described == load_model(settings, 0, lambda detail: None).info


def test_the_embedded_model_is_too() -> None:
    described, size = inspect_model(settings_for("embedded"), 0)
    assert described == load_model(settings_for("embedded"), 0, lambda detail: None).info
    files = EMBEDDED_PATH.glob("*/*.safetensors")
    assert size == sum(numbers_in(file) for file in files) * 4


def test_a_single_file_is_described_too(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", padding=END)
    pipeline = tiny_pipeline("sd1", AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))
    file = tmp_path / "mine.safetensors"
    save_file(original_weights(pipeline), file)
    changes = {"cache_dir": tmp_path / "cache"}
    settings = settings_for(str(file)).model_copy(update=changes)
    described, size = inspect_model(settings, 0)
    assert described == load_model(settings, 0, lambda detail: None).info
    assert size == numbers_in(file) * 4


def test_weights_that_are_there_in_several_forms_count_once(
    tmp_path: Path, pipeline_folder: Callable[[str], Path]
) -> None:
    folder = tmp_path / "twice"
    shutil.copytree(pipeline_folder("sd1"), folder)
    once = weight_bytes(folder, 2)
    for file in list(folder.glob("*/*.safetensors")):
        shutil.copy(file, file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    assert weight_bytes(folder, 2) == once == weight_bytes(folder, 4) // 2


async def test_three_models_under_mixed_load_lose_nothing_and_draw_what_each_draws_alone(
    folder: Path,
) -> None:
    settings = settings_of(folder)
    sizes = {}
    alone = {}
    for name in NAMES:
        own = settings_for("embedded" if name == "embedded" else str(folder / name))
        model = load_model(own, 0, lambda detail: None)
        sizes[name] = inspect_model(own, 0)[1]
        alone |= {(name, seed): draw_alone(model, asked(name, seed)) for seed in (1, 2)}
    # Two of them fit at a time, whichever.
    limit = sum(sizes.values()) - min(sizes.values())
    most = 0
    async with serving(settings, limit) as engine:
        await until(lambda: len(engine.status.models) == 3)
        requests = [asked(NAMES[number % 3], 1 + number // 3 % 2) for number in range(18)]
        drawing = [asyncio.create_task(collect(engine, request)) for request in requests]
        while not all(task.done() for task in drawing):
            loaded = [m.name for m in engine.status.models if m.state is ModelState.LOADED]
            most = max(most, sum(sizes[name] for name in loaded))
            await asyncio.sleep(0.01)
        for request, task in zip(requests, drawing, strict=True):
            (image,) = [each for each in task.result() if isinstance(each, GeneratedImage)]
            difference = np.abs(array(image) - alone[request.model, request.seed]).max()
            assert difference <= TOLERANCE, (request.model, difference)
        assert engine.status.counters.completed == len(requests)
    assert 0 < most <= limit


async def test_a_folder_of_models_is_followed_while_it_serves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "LOOK_SECONDS", 0.05)
    async with serving(settings_of(folder)) as engine:
        await until(lambda: len(engine.status.models) == 3)
        (folder / "lcm").rename(folder.parent / "lcm")
        await until(lambda: len(engine.status.models) == 2)
        (folder.parent / "lcm").rename(folder / "more")
        await until(lambda: len(engine.status.models) == 3)
        events = await collect(engine, replace(asked("lcm", 1), model="more"))
        assert any(isinstance(event, GeneratedImage) for event in events)
