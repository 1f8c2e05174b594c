"""Any pipeline of diffusers is drawn by its own call, a step at a time beside others, as it draws alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests.integration.engine.general_pipelines import MAKERS, save
from tests.unit.engine.test_engine import collect, until
from text2image.core.errors import Internal, InvalidRequest
from text2image.core.messages import GeneratedImage, Progress, Request, State, StreamOptions
from text2image.core.settings import Settings
from text2image.engine.costs import StepCosts
from text2image.engine.engine import Engine
from text2image.engine.models import general_info
from text2image.engine.models.general import General
from text2image.engine.models.inspection import inspect_model
from text2image.engine.models.loading import FAMILIES, load_model
from text2image.engine.models.suspension import Run
from text2image.engine.warmup import usual_request

# One class of which what all share is tested.
ONE = "PixArtSigmaPipeline"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where a class's pipeline lies, which is made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("general"), {}

    def folder(named: str) -> Path:
        if named not in made:
            made[named] = save(named, root)
        return made[named]

    return folder


def settings_of(folder: Path, **more: Any) -> Settings:
    limits = {"max_batch_rows": 8, "max_side": 64}
    return Settings(model=str(folder), device="cpu", dtype="float32", **{**limits, **more})


@asynccontextmanager
async def serving(folder: Path, **more: Any) -> AsyncIterator[tuple[Engine, General]]:
    settings = settings_of(folder, **more)
    engine = Engine(lambda report: load_model(settings, 0, report))
    engine.start()
    try:
        await until(lambda: engine.status.state is not State.LOADING)
        assert engine.status.state is State.READY, engine.status.detail
        models: Any = engine._worker.models
        yield engine, models._models[folder.name]
    finally:
        await engine.stop()


def asked(model: General, **more: Any) -> Request:
    return replace(
        usual_request(model.info), **{"prompt": "a red fox", "width": 64, "height": 64, **more}
    )


def drawn(events: list[Any]) -> np.ndarray:
    (picture,) = (each.pixels for each in events if isinstance(each, GeneratedImage))
    shape = (picture.height, picture.width, 3)
    return np.frombuffer(picture.rgb, np.uint8).reshape(shape).astype(np.int16)


@cache
def untouched(folder: Path) -> Any:
    """Diffusers' own pipeline, which nothing here draws with otherwise than diffusers does."""
    pipeline = getattr(diffusers, folder.name).from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def with_diffusers(folder: Path, model: General, request: Request) -> np.ndarray:
    """What diffusers draws alone."""
    pipeline = untouched(folder)
    generator = torch.Generator("cpu").manual_seed(request.seed)
    picture = pipeline(**model._arguments(request), generator=generator).images[0]
    result: np.ndarray = (picture * 255).round().astype(np.int16)
    return result


@pytest.mark.parametrize("named", MAKERS)
async def test_a_picture_is_the_pipelines_own_alone_and_beside_others(
    folders: Any, named: str
) -> None:
    folder = folders(named)
    async with serving(folder) as (engine, model):
        assert isinstance(model, General)
        assert model.info.family == "general"
        # A catalogue tells the same of it before it is loaded.
        assert inspect_model(settings_of(folder), 0)[0] == model.info
        guided = {"guidance_scale": 4.0} if model._guidance else {}
        negative = {"negative_prompt": "blue"} if "negative_prompt" in model._parameters else {}
        requests = [
            asked(model, steps=3, seed=1, **guided),
            asked(model, steps=5, seed=2, prompt="an owl", **guided, **negative),
            asked(model, steps=4, seed=3, guidance_scale=1.0),
        ]
        crowd = [asyncio.create_task(collect(engine, each)) for each in requests]
        together = [drawn(await each) for each in crowd]
        alone = drawn(await collect(engine, requests[0]))
        expected = [with_diffusers(folder, model, each) for each in requests]
    for picture, own in zip([*together, alone], [*expected, expected[0]], strict=True):
        assert np.abs(picture - own).max() <= 2
    # Pictures differ by what was asked for, so that those that are mixed up would be found.
    assert min(np.abs(expected[0] - each).max() for each in expected[1:]) > 20


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are as large as they may be, also where a busy machine has measured that large ones do not pay."""
    monkeypatch.setattr(StepCosts, "cap", lambda self, key: 8)


class Passes:
    """The rows that each pass of the network had; the engine's thread may be stopped at one of them."""

    def __init__(self, model: General) -> None:
        self.rows: list[int] = []
        self.stop_at = -1
        self.reached, self.go_on = Event(), Event()
        # A block inside of the network: what is called from outside pauses first.
        model._pipeline.transformer.transformer_blocks[0].register_forward_pre_hook(
            self._count, with_kwargs=True
        )

    def _count(self, block: Any, args: Any, kwargs: Any) -> None:
        self.rows.append(len(args[0] if args else kwargs["hidden_states"]))
        if len(self.rows) == self.stop_at:
            self.reached.set()
            assert self.go_on.wait(30)


def runs_of(model: General, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """All that the model begins from now on."""
    begun: list[Run] = []
    begin = model._begun
    monkeypatch.setattr(model, "_begun", lambda *args: begun.append(begin(*args)) or begun[-1])
    return begun


@pytest.mark.usefixtures("roomy")
async def test_steps_of_several_requests_share_the_passes_of_the_network(folders: Any) -> None:
    async with serving(folders(ONE)) as (engine, model):
        passes = Passes(model)
        requests = [
            asked(model, steps=4 + seed, seed=seed, guidance_scale=3.0) for seed in range(3)
        ]
        passes.stop_at = 1
        crowd = [asyncio.create_task(collect(engine, each)) for each in requests]
        await until(passes.reached.is_set)
        passes.go_on.set()
        for each in crowd:
            await each
    # Two rows each: with a prompt and without.
    assert max(passes.rows) == 2 * len(requests)
    assert sum(passes.rows) == 2 * sum(each.steps for each in requests)


async def test_each_step_is_told_and_pictures_of_one_request_have_seeds_of_their_own(
    folders: Any,
) -> None:
    folder = folders(ONE)
    async with serving(folder) as (engine, model):
        request = asked(model, steps=4, n=2, seed=7)
        options = StreamOptions(progress_every=1, preview_every=1)
        events = await collect(engine, request, options)
        expected = [
            with_diffusers(folder, model, replace(request, seed=seed, n=1)) for seed in (7, 8)
        ]
    for index, own in enumerate(expected):
        mine = [each for each in events if getattr(each, "index", None) == index]
        told = [each.step for each in mine if isinstance(each, Progress)]
        assert told == sorted(set(told))
        assert told[-1] == 4
        assert np.abs(drawn(mine) - own).max() <= 2
    previews = [each.preview for each in events if isinstance(each, Progress) and each.preview]
    assert previews
    assert {(each.width, each.height) for each in previews} == {(8, 8)}


@pytest.mark.usefixtures("roomy")
async def test_pictures_of_one_text_have_it_encoded_once(folders: Any) -> None:
    async with serving(folders(ONE)) as (engine, model):
        read: list[int] = []
        model._pipeline.text_encoder.register_forward_pre_hook(
            lambda encoder, args: read.append(len(args[0]))
        )
        await collect(engine, asked(model, steps=1, n=3, guidance_scale=3.0))
    # The prompt, and the empty text beside it.
    assert read == [1, 1]


async def test_who_leaves_is_gone_at_the_next_step_with_all_that_the_pipeline_held(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(folders(ONE)) as (engine, model):
        passes, begun = Passes(model), runs_of(model, monkeypatch)
        passes.stop_at = 3
        events = engine.generate(asked(model, steps=50), StreamOptions(), time_limit=1e6)
        async with aclosing(events):
            await anext(events)
            await until(passes.reached.is_set)
        passes.go_on.set()
        await until(lambda: engine.status.counters.cancelled == 1)
        (run,) = begun
        assert run._greenlet.dead
        assert run.call is None
        assert len(passes.rows) == 3
        # The next one is not disturbed by what was left in the middle of it.
        await collect(engine, asked(model, steps=2))


@pytest.mark.parametrize(
    "fault", [{"width": 68}, {"guidance_scale": float("inf")}], ids=["at once", "at the end"]
)
async def test_an_error_ends_its_own_request_and_no_other(
    folders: Any, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders(ONE)
    async with serving(folder) as (engine, model):
        begun = runs_of(model, monkeypatch)
        good = asked(model, steps=5, seed=3)
        requests = [good, asked(model, steps=3, **fault), replace(good, seed=4)]
        crowd = [asyncio.create_task(collect(engine, each)) for each in requests]
        events = await asyncio.gather(*crowd, return_exceptions=True)
        counters = engine.status.counters
        expected = [with_diffusers(folder, model, each) for each in (good, requests[2])]
    assert isinstance(events[1], Internal)
    for own, picture in zip(expected, (events[0], events[2]), strict=True):
        assert not isinstance(picture, BaseException)
        assert np.abs(drawn(picture) - own).max() <= 2
    assert (counters.completed, counters.failed) == (2, 1)
    assert all(run._greenlet.dead for run in begun)


async def test_a_negative_prompt_that_a_pipeline_does_not_read_is_refused(folders: Any) -> None:
    async with serving(folders("SanaSprintPipeline")) as (engine, model):
        with pytest.raises(InvalidRequest, match="negative_prompt: is not read by this model"):
            await collect(engine, asked(model, negative_prompt="blue"))


async def test_a_pipeline_that_has_no_network_to_pause_at_is_drawn_whole_and_says_so(
    folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(general_info, "_NETWORKS", ())
    folder = folders(ONE)
    async with serving(folder, default_steps=3) as (engine, model):
        assert model.info.family == "general, whole"
        request = asked(model)
        picture = drawn(await collect(engine, request))
        expected = with_diffusers(folder, model, request)
    assert np.abs(picture - expected).max() <= 2


@pytest.mark.parametrize(
    ("named", "drawn_with"),
    [
        ("PixArtAlphaPipeline", True),
        ("PixArtSigmaPAGPipeline", False),
        ("FluxImg2ImgPipeline", False),
        ("FluxControlPipeline", False),
        ("StableDiffusionDepth2ImgPipeline", False),
        ("StableDiffusionXLImg2ImgPipeline", False),
        ("Flux2KleinPipeline", True),
        ("FluxKontextPipeline", False),
        ("WanPipeline", False),
        ("StableAudioPipeline", False),
        ("KandinskyV22CombinedPipeline", False),
        ("UNet2DConditionModel", False),
        ("NoSuchPipeline", False),
        (None, False),
    ],
)
def test_pipelines_that_draw_from_a_text_alone_are_told_from_all_others(
    named: Any, drawn_with: bool
) -> None:
    assert bool(FAMILIES.loader_of(named)) is drawn_with
