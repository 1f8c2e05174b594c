"""The gateway's own part of a request: it is validated and recalled before, and encoded, saved, kept and told after."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry
from starlette.responses import Response

from tests.samples import MODEL
from tests.unit.gateway.asking import PARAMS, asking
from tests.unit.gateway.scripted import BREAK, HANG, STORY, ScriptedRunner
from text2image.api.asgi import marked
from text2image.core import validation
from text2image.core.errors import InvalidRequest, Unavailable
from text2image.core.lifecycle import Work
from text2image.core.messages import (
    Completed,
    Picture,
    Queued,
    Share,
    State,
    StreamOptions,
)
from text2image.gateway import metadata
from text2image.gateway.auth import Caller
from text2image.gateway.cache import PictureCache
from text2image.gateway.cache_backends import DiskBackend
from text2image.gateway.generate import Gateway
from text2image.gateway.runners import Runners
from text2image.gateway.store import Store
from text2image.observe.metrics import GatewayMetrics


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[ScriptedRunner]:
    runner = ScriptedRunner(tmp_path / "socket", (*STORY[:-1], Completed("and a dog", "blur")))
    await runner.start()
    yield runner
    await runner.die()


@pytest.fixture
async def runners(runner: ScriptedRunner) -> AsyncIterator[Runners]:
    runners = Runners([runner.address], 0, GatewayMetrics(CollectorRegistry()))
    runners.start()
    async for status in runners.statuses():
        if status.state is State.READY:
            break
    yield runners
    await runners.close()


def gateway(
    runners: Runners,
    store: Store | None,
    *,
    cache: Path | None = None,
    log_prompts: bool = False,
    registry: CollectorRegistry | None = None,
) -> Gateway:
    return Gateway(
        runners,
        store,
        GatewayMetrics(registry or CollectorRegistry()),
        Work(),
        cache=PictureCache(DiskBackend(cache, 1 << 20)) if cache else None,
        log_prompts=log_prompts,
    )


async def test_pictures_are_stored_and_carry_their_parameters(
    runners: Runners, tmp_path: Path
) -> None:
    drawing = await gateway(runners, Store(tmp_path / "pictures")).draw(asking())
    assert [picture.seed for picture in drawing.pictures] == [7, 8]
    assert (
        drawing.message
        == "2 images generated successfully; the prompt was too long, left out: and a dog; "
        "the negative prompt was too long, left out: blur"
    )
    for picture in drawing.pictures:
        check_file(picture)


def check_file(picture: Picture) -> None:
    path = Path(picture.path)
    assert path.name.startswith(("snow_fox_", "fox_snow_"))
    assert path.read_bytes() == picture.png
    params = metadata.parse(Image.open(io.BytesIO(picture.png)).text[metadata.CHUNK])
    assert (params.prompt, params.seed, params.steps) == ("a fox, snow", picture.seed, MODEL.steps)


async def test_a_picture_that_cannot_be_saved_is_given_all_the_same(
    runners: Runners, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    drawing = await gateway(runners, Store(tmp_path / "file")).draw(asking())
    assert [picture.path for picture in drawing.pictures] == ["", ""]
    assert all(picture.png for picture in drawing.pictures)
    assert "could not be saved" in drawing.message


async def test_nothing_is_saved_or_said_of_it_where_saving_is_off(runners: Runners) -> None:
    drawing = await gateway(runners, None).draw(asking())
    assert [picture.path for picture in drawing.pictures] == ["", ""]
    assert "saved" not in drawing.message


@pytest.mark.parametrize("log_prompts", [False, True])
async def test_the_log_has_a_line_for_each_order_and_prompts_only_when_asked_to(
    runners: Runners, tmp_path: Path, caplog: pytest.LogCaptureFixture, log_prompts: bool
) -> None:
    (tmp_path / "file").write_bytes(b"")
    caplog.set_level(logging.DEBUG)
    asked = gateway(runners, Store(tmp_path / "file"), log_prompts=log_prompts)
    await asked.draw(
        asking(prompt="vermilion\nfox", negative_prompt="murky", title="vermilion fox")
    )
    drawing = [line for line in caplog.messages if line.startswith("drawing ")]
    assert len(drawing) == 1
    assert "128x128, 20 steps, n 2, seed 7" in drawing[0]
    assert "\n" not in drawing[0]
    for word in ("vermilion", "fox", "murky"):
        assert (word in drawing[0]) == log_prompts
        assert sum(word in line for line in caplog.messages) == int(log_prompts)


async def test_the_same_seed_again_is_answered_with_the_same_picture(
    runner: ScriptedRunner, runners: Runners, tmp_path: Path
) -> None:
    registry = CollectorRegistry()
    asked = gateway(
        runners, Store(tmp_path / "pictures"), cache=tmp_path / "cache", registry=registry
    )
    first = await asked.draw(asking())
    await asked.close()
    again = await asked.draw(asking())
    assert (first.cached, again.cached) == (False, True)
    assert again.pictures == [replace(picture, cached=True) for picture in first.pictures]
    assert again.message == first.message
    # Picture i of n is the picture of its own seed.
    one = await asked.draw(asking(n=1, seed=8))
    assert one.pictures == [replace(first.pictures[1], index=0, cached=True)]
    assert len(runner.requests) == 1
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    outcomes = {
        outcome: registry.get_sample_value("text2image_cache_total", {"outcome": outcome})
        for outcome in ("hit", "miss", "shared")
    }
    assert outcomes == {"hit": 2, "miss": 1, "shared": 0}


async def test_a_recalled_order_is_told_like_one_that_is_drawn(
    runners: Runners, tmp_path: Path
) -> None:
    asked = gateway(runners, None, cache=tmp_path / "cache")
    await asked.draw(asking())
    events = [event async for event in asked.stream(asking())]
    assert [type(event) for event in events] == [Queued, Picture, Picture, Completed]
    assert events[0] == Queued(0.0)
    assert events[-1] == Completed("and a dog", "blur")


async def test_without_a_seed_every_picture_is_new(
    runner: ScriptedRunner, runners: Runners, tmp_path: Path
) -> None:
    asked = gateway(runners, None, cache=tmp_path / "cache")
    drawings = await asyncio.gather(*(asked.draw(asking(seed=None)) for _ in range(3)))
    assert len({request.seed for request in runner.requests}) == 3
    assert not any(drawing.cached for drawing in drawings)
    assert not (tmp_path / "cache").exists()


async def test_only_all_pictures_together_are_recalled(
    runner: ScriptedRunner, runners: Runners, tmp_path: Path
) -> None:
    asked = gateway(runners, None, cache=tmp_path / "cache")
    await asked.draw(asking())
    await asked.draw(asking(n=3))
    assert len(runner.requests) == 2


async def test_a_recalled_picture_whose_file_is_gone_is_saved_again_once(
    runners: Runners, tmp_path: Path
) -> None:
    asked = gateway(runners, Store(tmp_path / "pictures"), cache=tmp_path / "cache")
    first = await asked.draw(asking())
    await asked.close()
    for spoil in (Path.unlink, lambda path: path.write_bytes(b"another picture")):
        spoil(Path(first.pictures[0].path))
        again = await asked.draw(asking())
        assert again.cached
        for picture in again.pictures:
            check_file(picture)
        files = list((tmp_path / "pictures").iterdir())
        assert (await asked.draw(asking())).pictures == again.pictures
        assert list((tmp_path / "pictures").iterdir()) == files


async def test_however_often_a_picture_is_recalled_and_by_how_many_it_makes_one_file_more(
    runners: Runners, tmp_path: Path
) -> None:
    """Gateways with folders of their own and one cache; a hit costs nothing, so it may not fill a disk either."""
    folders = [tmp_path / name for name in ("one", "two")]
    gateways = [gateway(runners, Store(folder), cache=tmp_path / "cache") for folder in folders]
    written = []
    for number in range(3):
        for asked in gateways:
            drawing = await asked.draw(asking(title=f"snow fox {number}"))
            await asked.close()
            for picture in drawing.pictures:
                check_file(picture)
        written.append(
            [{path.stat().st_mtime_ns for path in folder.iterdir()} for folder in folders]
        )
    assert written[0] == written[1] == written[2]
    assert [len(list(folder.iterdir())) for folder in folders] == [2, 2]
    for path in folders[1].iterdir():
        path.write_bytes(b"another picture")
    await gateways[1].draw(asking())
    assert len(list(folders[1].iterdir())) == 2


async def test_a_picture_is_kept_and_described_as_that_of_the_model_that_drew_it(
    runner: ScriptedRunner, tmp_path: Path
) -> None:
    """A request that is sent again may come to a runner with another model than the one it was asked of."""
    newer = replace(MODEL, revision="newer")
    runner.play([STORY[0], BREAK], STORY)
    runners = Runners([runner.address], 1, GatewayMetrics(CollectorRegistry()))
    runners.start()
    async for status in runners.statuses():
        if status.state is State.READY:
            break
    try:
        runner.model = newer
        asked = gateway(runners, None, cache=tmp_path / "cache")
        drawing = await asked.draw(asking())
        await asked.close()
        cache = PictureCache(DiskBackend(tmp_path / "cache", 1 << 20))
        request = validation.resolve(PARAMS, MODEL)
        assert await cache.recall(request, MODEL) is None
        assert await cache.recall(request, newer)
        for picture in drawing.pictures:
            assert "Model hash: newer" in Image.open(io.BytesIO(picture.png)).text[metadata.CHUNK]
    finally:
        await runners.close()


@pytest.mark.parametrize("remembers", [False, True])
@pytest.mark.parametrize("seed", [7, None])
async def test_the_cache_is_told_of_only_where_there_is_one_and_it_could_have_the_picture(
    runners: Runners, tmp_path: Path, remembers: bool, seed: int | None
) -> None:
    asked = gateway(runners, None, cache=tmp_path / "cache" if remembers else None)
    expected = ["miss", "hit"] if remembers and seed is not None else [None, None]
    for told in expected:
        context = asking(seed=seed)
        response = marked(Response(), context, await asked.draw(context))
        assert response.headers.get("X-Cache") == told


async def test_a_recalled_picture_that_cannot_be_saved_is_given_and_it_is_said(
    runners: Runners, tmp_path: Path
) -> None:
    asked = gateway(runners, None, cache=tmp_path / "cache")
    await asked.draw(asking())
    await asked.close()
    (tmp_path / "file").write_bytes(b"")
    asked = gateway(runners, Store(tmp_path / "file"), cache=tmp_path / "cache")
    drawing = await asked.draw(asking())
    assert drawing.cached
    assert "could not be saved" in drawing.message


async def test_a_path_outside_the_folder_is_never_told(runners: Runners, tmp_path: Path) -> None:
    """The cache may hold what another server saved, or nothing that was ever true."""
    other = gateway(runners, Store(tmp_path / "other"), cache=tmp_path / "cache")
    await other.draw(asking())
    await other.close()
    asked = gateway(runners, Store(tmp_path / "pictures"), cache=tmp_path / "cache")
    for picture in (await asked.draw(asking())).pictures:
        assert Path(picture.path).parent == tmp_path / "pictures"
    nowhere = gateway(runners, None, cache=tmp_path / "cache")
    assert [picture.path for picture in (await nowhere.draw(asking())).pictures] == ["", ""]


async def test_the_same_at_once_is_drawn_and_saved_once(
    runner: ScriptedRunner, runners: Runners, tmp_path: Path
) -> None:
    asked = gateway(runners, Store(tmp_path / "pictures"))
    drawings = await asyncio.gather(*(asked.draw(asking()) for _ in range(20)))
    assert len(runner.requests) == 1
    assert all(drawing == drawings[0] for drawing in drawings)
    assert len(list((tmp_path / "pictures").iterdir())) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 8},
        {"n": 1},
        {"prompt": "a cat"},
        {"options": StreamOptions(progress_every=1)},
        {"caller": Caller("address:127.0.0.2", Share("address:127.0.0.2"))},
    ],
    ids=["seed", "n", "prompt", "options", "caller"],
)
async def test_what_differs_is_not_shared(
    runner: ScriptedRunner, runners: Runners, other: dict[str, Any]
) -> None:
    asked = gateway(runners, None)
    await asyncio.gather(asked.draw(asking()), asked.draw(asking(**other)))
    assert len(runner.requests) == 2


@pytest.mark.parametrize("seed", [7, None])
async def test_when_all_have_left_the_runners_work_ends(
    runner: ScriptedRunner, runners: Runners, seed: int | None
) -> None:
    runner.play([STORY[0], HANG])
    asked = gateway(runners, None)
    clients = [asyncio.create_task(asked.draw(asking(seed=seed))) for _ in range(2)]
    await runner.hung()
    clients.pop().cancel()
    await asyncio.sleep(0)
    assert seed is None or not runner.cancelled.is_set()
    clients.pop().cancel()
    await asyncio.wait_for(runner.cancelled.wait(), 30)
    assert not len(asked.work)


async def test_the_time_to_drain_ends_for_those_who_share_too(
    runner: ScriptedRunner, runners: Runners
) -> None:
    runner.play([STORY[0], HANG])
    asked = gateway(runners, None)
    clients = [asyncio.create_task(asked.draw(asking())) for _ in range(3)]
    await runner.hung()
    await asked.drain(0.01)
    for client in clients:
        with pytest.raises(Unavailable) as raised:
            await client
        assert raised.value.reason == Unavailable.DRAINING
    await asyncio.wait_for(runner.cancelled.wait(), 30)


async def test_an_invalid_order_never_reaches_a_runner(runners: Runners) -> None:
    with pytest.raises(InvalidRequest):
        await gateway(runners, None).draw(asking(prompt=""))
    assert runners.status.counters.admitted == 0


async def test_with_notice_a_gateway_says_that_it_leaves_before_it_refuses(
    runners: Runners,
) -> None:
    leaving = gateway(runners, None)
    draining = asyncio.create_task(leaving.drain(1, notice=0.1))
    await asyncio.sleep(0)
    assert not leaving.is_ready
    async for status in leaving.statuses():
        assert status.state is State.DRAINING
        break
    with leaving.work.admit(lambda: None):
        assert not leaving.may_refuse_unread
    await draining
    with pytest.raises(Unavailable, match="shutting down"):
        await leaving.draw(asking())


async def test_a_draining_gateway_refuses_and_says_so(runners: Runners) -> None:
    draining = gateway(runners, None)
    assert draining.is_ready
    await draining.drain(1)
    assert not draining.is_ready
    with pytest.raises(Unavailable):
        await draining.draw(asking())
    async for status in draining.statuses():
        assert status.state is State.DRAINING
        break
