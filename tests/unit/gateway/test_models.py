"""Several models behind one gateway: which runner draws with which, and what a request is told until it does."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.samples import MODEL, REQUEST
from tests.unit.gateway.asking import CALLER, asking
from tests.unit.gateway.scripted import STORY, ScriptedRunner
from tests.unit.gateway.test_runners import Connect, connect, until
from text2image.core.errors import DeadlineExceeded, ModelNotFound, Unavailable
from text2image.core.lifecycle import Work
from text2image.core.limits import Allowance, parse_limits
from text2image.core.messages import (
    Loading,
    ModelInfo,
    ModelState,
    ModelStatus,
    Picture,
    Request,
    Share,
    State,
    Status,
    StreamOptions,
)
from text2image.gateway.cache import key_of
from text2image.gateway.generate import Gateway
from text2image.gateway.runners import Runners
from text2image.observe.metrics import GatewayMetrics

__all__ = ["connect"]

OTHER = replace(MODEL, id="other", revision="1", width=256, aliases=("another",), price=4.0)


def status_with(*models: ModelInfo, state: ModelState = ModelState.LOADED, **more: float) -> Status:
    told = [
        ModelStatus(name=model.id, revision=model.revision, state=state, seconds=seconds)
        for model, seconds in zip(models, [0.0, more.pop("seconds", 0.0)], strict=False)
    ]
    return Status(state=State.READY, models=tuple(told), **more)  # type: ignore[arg-type]


def runner(socket: Path, *others: ModelInfo, **more: float) -> ScriptedRunner:
    return ScriptedRunner(socket, status=status_with(MODEL, *others, **more), others=others)


async def draw(runners: Runners, request: Request) -> None:
    deadline = asyncio.get_running_loop().time() + 30
    events = [each async for each in runners.generate(request, StreamOptions(), deadline, Share())]
    assert [event for event, _ in events] == list(STORY)


async def test_a_model_is_found_by_its_name_or_alias(tmp_path: Path, connect: Connect) -> None:
    runners = await connect(scripted := runner(tmp_path / "0", OTHER))
    assert [model.id for model in runners.models] == ["embedded", "other"]
    assert runners.named("other") == runners.named("another") == OTHER
    assert runners.named(None) == runners.model == MODEL
    with pytest.raises(ModelNotFound, match=r"'embedded', 'other' are"):
        runners.named("dall-e-3")
    await draw(runners, replace(REQUEST, model="other"))
    await draw(runners, REQUEST)
    assert [request.model for request in scripted.requests] == ["other", ""]


async def test_only_runners_that_have_a_model_are_asked_for_it(
    tmp_path: Path, connect: Connect
) -> None:
    plain, both = ScriptedRunner(tmp_path / "0"), runner(tmp_path / "1", OTHER, backlog_seconds=9)
    runners = await connect(plain, both)
    for _ in range(5):
        await draw(runners, replace(REQUEST, model="other"))
    assert (len(plain.requests), len(both.requests)) == (0, 5)
    await both.die()
    await until(runners, lambda: len(runners._ready) == 1)
    with pytest.raises(Unavailable):
        await draw(runners, replace(REQUEST, model="other"))
    await draw(runners, REQUEST)


async def test_a_runner_that_has_it_loaded_is_preferred_unless_it_is_fuller_by_the_loading_time(
    tmp_path: Path, connect: Connect
) -> None:
    far = runner(tmp_path / "0", OTHER, seconds=20.0)
    near = runner(tmp_path / "1", OTHER, backlog_seconds=5)
    runners = await connect(far, near)
    asked = replace(REQUEST, model="other")
    await draw(runners, asked)
    assert (len(far.requests), len(near.requests)) == (0, 1)
    near.show(status_with(MODEL, OTHER, backlog_seconds=60))
    await until(runners, lambda: runners.status.backlog_seconds == 60)
    await draw(runners, asked)
    assert (len(far.requests), len(near.requests)) == (1, 1)


async def test_by_each_name_the_model_of_most_is_drawn_with(
    tmp_path: Path, connect: Connect
) -> None:
    newer = replace(OTHER, revision="2")
    odd = runner(tmp_path / "0", newer)
    runners = await connect(odd, runner(tmp_path / "1", OTHER), runner(tmp_path / "2", OTHER))
    await until(runners, lambda: runners.named("other").revision == "1")
    for _ in range(10):
        await draw(runners, replace(REQUEST, model="other"))
    assert not odd.requests
    # With the default model it has its part.
    for _ in range(10):
        await draw(runners, REQUEST)
    assert odd.requests


async def test_runners_that_decode_in_tiles_from_different_sizes_on_draw_what_all_draw_alike(
    tmp_path: Path, connect: Connect
) -> None:
    large = replace(OTHER, max_side=1024)
    small = replace(large, tiled_above=512 * 512)
    one, other = runner(tmp_path / "0", large), runner(tmp_path / "1", small)
    runners = await connect(one, other)
    await until(runners, lambda: runners.named("other").max_side == 512)
    for _ in range(10):
        await draw(runners, replace(REQUEST, model="other"))
    assert one.requests
    assert other.requests


async def test_runners_that_decode_the_models_own_size_otherwise_draw_other_pictures(
    tmp_path: Path, connect: Connect
) -> None:
    small = replace(OTHER, tiled_above=128 * 128)
    odd = runner(tmp_path / "0", small)
    runners = await connect(odd, runner(tmp_path / "1", OTHER), runner(tmp_path / "2", OTHER))
    await until(runners, lambda: runners.named("other").tiled_above == 0)
    for _ in range(10):
        await draw(runners, replace(REQUEST, model="other"))
    assert not odd.requests


async def test_models_that_come_and_go_on_a_runner_do_so_here(
    tmp_path: Path, connect: Connect
) -> None:
    runners = await connect(scripted := runner(tmp_path / "0", OTHER))
    more = replace(OTHER, id="more", aliases=())
    scripted.others = [more]
    scripted.show(status_with(MODEL, more))
    await until(runners, lambda: [model.id for model in runners.models] == ["embedded", "more"])
    with pytest.raises(ModelNotFound):
        runners.named("other")


async def test_who_waits_for_a_model_is_told_and_pays_once_a_runner_admits(
    tmp_path: Path, connect: Connect
) -> None:
    """By its price."""
    waits = Loading("reading weights", 3.0)
    too_late = DeadlineExceeded("not loaded in time")
    scripted = ScriptedRunner(
        tmp_path / "0",
        [waits, *STORY],
        [waits, too_late],
        status=status_with(MODEL, OTHER),
        others=[OTHER],
    )
    gateway = Gateway(await connect(scripted), None, GatewayMetrics(CollectorRegistry()), Work())
    caller = replace(CALLER, allowance=Allowance(limits=parse_limits("100/minute")))
    context = asking(caller=caller, model="another", steps=20, width=128, height=128)
    events = [event async for event in gateway.stream(context)]
    assert events[0] == waits
    assert [type(event) for event in events].count(Picture) == 2
    cost = 2 * 20 * 128 * 128 * OTHER.price
    assert context.standing
    left = context.standing[0].left
    assert left == 100e6 - cost
    waited = asking(caller=caller, model="other", steps=20, width=128, height=128, seed=9)
    with pytest.raises(DeadlineExceeded):
        _ = [event async for event in gateway.stream(waited)]
    (spending,) = await gateway._quotas.standing(caller)
    assert spending.left == left, "who waited in vain pays nothing"


def test_pictures_are_kept_by_their_model() -> None:
    alike = replace(OTHER, revision=MODEL.revision, fast=MODEL.fast)
    keys = {key_of(replace(REQUEST, model=model.id), 0, model) for model in (MODEL, OTHER, alike)}
    assert len(keys) == 3
