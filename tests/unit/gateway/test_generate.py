"""The gateway's own part of a request: it is validated before, and encoded, stored and told after."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from tests.samples import MODEL
from tests.unit.gateway.scripted import STORY, ScriptedRunner
from text2image.errors import InvalidRequest, Unavailable
from text2image.gateway import metadata
from text2image.gateway.generate import Gateway, Order
from text2image.gateway.runners import Runners
from text2image.gateway.store import Store
from text2image.lifecycle import Work
from text2image.messages import Completed, Draft, Picture, State
from text2image.telemetry import GatewayMetrics

ORDER = Order(draft=Draft(prompt="a fox, snow", n=2, seed=7), title="snow a fox", timeout=30)


@pytest.fixture
async def runners(tmp_path: Path) -> AsyncIterator[Runners]:
    runner = ScriptedRunner(tmp_path / "socket", (*STORY[:-1], Completed("and a dog")))
    await runner.start()
    runners = Runners([runner.socket], 0, GatewayMetrics(CollectorRegistry()))
    runners.start()
    async for status in runners.statuses():
        if status.state is State.READY:
            break
    yield runners
    await runners.close()
    await runner.die()


def gateway(runners: Runners, store: Store | None, *, log_prompts: bool = False) -> Gateway:
    metrics = GatewayMetrics(CollectorRegistry())
    return Gateway(runners, store, metrics, Work(), log_prompts=log_prompts)


async def test_pictures_are_stored_and_carry_their_parameters(
    runners: Runners, tmp_path: Path
) -> None:
    drawing = await gateway(runners, Store(tmp_path / "pictures")).draw(ORDER)
    assert [picture.seed for picture in drawing.pictures] == [7, 8]
    assert (
        drawing.message
        == "2 images generated successfully; the prompt was too long, left out: and a dog"
    )
    for picture in drawing.pictures:
        check_file(picture)


def check_file(picture: Picture) -> None:
    path = Path(picture.path)
    assert path.name.startswith("snow_fox_")
    assert path.read_bytes() == picture.png
    draft = metadata.parse(Image.open(io.BytesIO(picture.png)).text[metadata.CHUNK])
    assert (draft.prompt, draft.seed, draft.steps) == ("a fox, snow", picture.seed, MODEL.steps)


async def test_a_picture_that_cannot_be_saved_is_given_all_the_same(
    runners: Runners, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    drawing = await gateway(runners, Store(tmp_path / "file")).draw(ORDER)
    assert [picture.path for picture in drawing.pictures] == ["", ""]
    assert all(picture.png for picture in drawing.pictures)
    assert "could not be saved" in drawing.message


async def test_nothing_is_saved_or_said_of_it_where_saving_is_off(runners: Runners) -> None:
    drawing = await gateway(runners, None).draw(ORDER)
    assert [picture.path for picture in drawing.pictures] == ["", ""]
    assert "saved" not in drawing.message


@pytest.mark.parametrize("log_prompts", [False, True])
async def test_the_log_has_a_line_for_each_order_and_prompts_only_when_asked_to(
    runners: Runners, tmp_path: Path, caplog: pytest.LogCaptureFixture, log_prompts: bool
) -> None:
    (tmp_path / "file").write_bytes(b"")
    caplog.set_level(logging.DEBUG)
    draft = replace(ORDER.draft, prompt="vermilion\nfox", negative_prompt="murky")
    asked = gateway(runners, Store(tmp_path / "file"), log_prompts=log_prompts)
    await asked.draw(Order(draft=draft, title="vermilion fox", timeout=30))
    drawing = [line for line in caplog.messages if line.startswith("drawing ")]
    assert len(drawing) == 1
    assert "128x128, 20 steps, n 2, seed 7" in drawing[0]
    assert "\n" not in drawing[0]
    for word in ("vermilion", "fox", "murky"):
        assert (word in drawing[0]) == log_prompts
        assert sum(word in line for line in caplog.messages) == int(log_prompts)


async def test_an_invalid_order_never_reaches_a_runner(runners: Runners) -> None:
    with pytest.raises(InvalidRequest):
        await gateway(runners, None).draw(Order(draft=Draft(prompt=""), title="", timeout=30))
    assert runners.status.counters.admitted == 0


async def test_a_draining_gateway_refuses_and_says_so(runners: Runners) -> None:
    draining = gateway(runners, None)
    assert draining.is_ready
    await draining.drain(1)
    assert not draining.is_ready
    with pytest.raises(Unavailable):
        await draining.draw(ORDER)
    async for status in draining.statuses():
        assert status.state is State.DRAINING
        break
