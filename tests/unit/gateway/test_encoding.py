"""A picture in any form shows the same, and carries the parameters that draw it again."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageChops
from prometheus_client import CollectorRegistry

from tests.samples import MODEL, REQUEST, params_of, requests
from tests.unit.gateway.asking import asking
from tests.unit.gateway.scripted import ScriptedRunner
from tests.unit.gateway.test_runners import until
from text2image.core.formats import PNG, Encoding, FileFormat
from text2image.core.lifecycle import Work
from text2image.core.messages import Picture, Pixels, Request
from text2image.gateway import metadata
from text2image.gateway.cache import PictureCache
from text2image.gateway.cache_backends import DiskBackend
from text2image.gateway.encoding import convert, preview
from text2image.gateway.generate import Gateway
from text2image.gateway.runners import Runners
from text2image.gateway.store import Store
from text2image.observe.metrics import GatewayMetrics

OTHERS = [FileFormat.JPEG, FileFormat.WEBP]
each_form = pytest.mark.parametrize("form", OTHERS)
GRADIENT = Pixels(64, 32, bytes(value for y in range(32) for x in range(64) for value in (x, y, 9)))


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def saved(picture: Picture) -> bytes:
    return Path(picture.path).read_bytes()


@given(requests, st.sampled_from(OTHERS))
@example(replace(REQUEST, prompt="füchse 🦊\nim Schnee"), FileFormat.JPEG)
def test_the_parameters_come_along(request: Request, form: FileFormat) -> None:
    text = metadata.describe(request, request.seed, MODEL)
    file = convert(metadata.encode(Pixels(1, 1, b"abc"), text), Encoding(form))
    assert opened(file).format == form.name
    assert metadata.parse(metadata.read(file)) == params_of(request)


@each_form
def test_they_stand_where_other_tools_look_for_them(form: FileFormat) -> None:
    file = convert(metadata.encode(GRADIENT, "a fox\nSteps: 1, Seed: 2"), Encoding(form))
    comment = opened(file).getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + "a fox\nSteps: 1, Seed: 2".encode("utf-16-be")


@each_form
def test_parameters_that_a_file_has_no_room_for_are_left_out(form: FileFormat) -> None:
    file = convert(metadata.encode(GRADIENT, "x" * 40_000), Encoding(form))
    assert opened(file).size == (64, 32)
    assert metadata.read(file) == ""


@each_form
def test_more_quality_is_closer_to_the_picture_and_takes_more_room(form: FileFormat) -> None:
    png = metadata.encode(GRADIENT)
    files = [convert(png, Encoding(form, quality)) for quality in (0, 50, 100)]
    assert sorted(map(len, files)) == [*map(len, files)]
    assert len(files[0]) < len(files[2])
    difference = ImageChops.difference(opened(png), opened(files[2]).convert("RGB"))
    assert max(high for _, high in difference.getextrema()) <= 6


def test_what_is_no_picture_has_no_parameters() -> None:
    for file in (b"", b"\x89PNG\r\n\x1a\nnot", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8X"):
        with pytest.raises(ValueError, match="no picture"):
            metadata.read(file)
    assert metadata.read(metadata.encode(GRADIENT)) == ""


@pytest.mark.parametrize("form", FileFormat)
def test_a_preview_is_as_large_as_its_picture(form: FileFormat) -> None:
    image = opened(preview(GRADIENT, 256, 128, Encoding(form, 80)))
    assert (image.format, image.size, image.mode) == (form.name, (256, 128), "RGB")


@each_form
async def test_a_picture_is_saved_as_it_is_answered_and_kept_without_loss(
    tmp_path: Path, form: FileFormat
) -> None:
    """So that the next who asks for it may have any other form."""
    runner = ScriptedRunner(tmp_path / "socket")
    metrics = GatewayMetrics(CollectorRegistry())
    runners = Runners([runner.address], 0, metrics)
    cache = PictureCache(DiskBackend(tmp_path / "cache", 1 << 20))
    gateway = Gateway(runners, Store(tmp_path / "saved"), metrics, Work(), cache=cache)
    await runner.start()
    try:
        runners.start()
        await until(runners, lambda: runners.is_ready)
        drawn = (await gateway.draw(asking(encoding=Encoding(form)))).pictures
        await gateway.close()
        known = (await gateway.draw(asking(encoding=Encoding(form)))).pictures
        lossless = (await gateway.draw(asking(encoding=PNG))).pictures
    finally:
        await runners.close()
        await runner.die()
    assert len(runner.requests) == 1
    for picture in (*drawn, *known):
        assert picture.path.endswith(form.suffix)
        assert saved(picture) == picture.file
        assert opened(picture.file).format == form.name
        assert metadata.parse(metadata.read(picture.file)).seed == picture.seed
    assert [picture.path for picture in drawn] == [picture.path for picture in known]
    for picture in lossless:
        assert picture.cached
        assert picture.file == picture.png == saved(picture)
        assert picture.path.endswith(".png")
