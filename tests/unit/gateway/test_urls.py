"""A URL opens its picture for whoever has it until it expires, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.redis import RedisServer
from text2image.core.errors import PermissionDenied
from text2image.core.formats import FileFormat
from text2image.gateway.cache_backends import DiskBackend
from text2image.gateway.shared.cache import RedisBackend
from text2image.gateway.shared.state import SharedState
from text2image.gateway.shared.urls import SharedKey
from text2image.gateway.urls import Gone, PictureUrls, key_in

BASE = "http://pictures.example/v1/images/files/"
FILE = b"a picture"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def urls(folder: Path, key: bytes = b"k", clock: Callable[[], float] = Clock()) -> PictureUrls:  # noqa: B008
    async def told() -> bytes:
        return key

    return PictureUrls(DiskBackend(folder, 1 << 16), told, 60, clock=clock)


async def given_out(urls: PictureUrls, form: FileFormat = FileFormat.PNG) -> tuple[str, str, str]:
    """Name, time and signature in a new URL."""
    url = await urls.url_of(FILE, form, "", BASE)
    assert url
    assert url.startswith(BASE)
    parts = urlsplit(url)
    asked = parse_qs(parts.query)
    return parts.path.rpartition("/")[2], asked["expires"][0], asked["signature"][0]


@pytest.mark.parametrize("form", FileFormat)
async def test_a_url_opens_its_picture(tmp_path: Path, form: FileFormat) -> None:
    hosted = urls(tmp_path)
    name, expires, signature = await given_out(hosted, form)
    # A random name: the log of a proxy tells nothing of what was asked for.
    assert re.fullmatch(rf"[0-9a-f]{{32}}\{form.suffix}", name)
    assert await hosted.read(name, expires, signature) == (FILE, form, 60)


async def test_a_url_expires(tmp_path: Path) -> None:
    clock = Clock()
    hosted = urls(tmp_path, clock=clock)
    url = await given_out(hosted)
    clock.now += 59
    assert (await hosted.read(*url))[2] == 1
    clock.now += 1
    with pytest.raises(PermissionDenied, match="expired"):
        await hosted.read(*url)


async def test_nothing_of_a_url_can_be_changed(tmp_path: Path) -> None:
    hosted = urls(tmp_path)
    name, expires, signature = await given_out(hosted)
    other, *_ = await given_out(hosted)
    for changed in [
        (other, expires, signature),
        (name.replace(".png", ".jpg"), expires, signature),
        (name, str(int(expires) + 1), signature),
        (name, f"0{expires}", signature),
        (name, expires, signature[:-1]),
        (name, expires, ""),
        (name, "", signature),
        (name, expires, "é"),
    ]:
        with pytest.raises(PermissionDenied):
            await hosted.read(*changed)


names = st.text(max_size=40) | st.from_regex(r"(\.\./|[0-9a-f]{32}|\.png|/|%2e|\0){1,5}")


@given(names, st.text(max_size=12), st.text(max_size=50))
async def test_other_names_lead_nowhere(name: str, expires: str, signature: str) -> None:
    # Nothing can lie there.
    folder = Path("/dev/null/urls")
    with pytest.raises((Gone, PermissionDenied)):
        await urls(folder).read(name, expires, signature)


async def test_a_picture_that_made_room_for_others_is_gone(tmp_path: Path) -> None:
    hosted = urls(tmp_path)
    name, expires, signature = await given_out(hosted)
    (tmp_path / name.partition(".")[0]).unlink()
    with pytest.raises(Gone):
        await hosted.read(name, expires, signature)


async def test_what_can_be_kept_nowhere_has_no_url(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert await urls(tmp_path / "file").url_of(FILE, FileFormat.PNG, "", BASE) is None
    too_large = bytes(1 << 17)
    assert await urls(tmp_path / "ok").url_of(too_large, FileFormat.PNG, "", BASE) is None


async def test_a_store_with_urls_of_its_own_is_asked_first(tmp_path: Path) -> None:
    asked = []

    def sign(path: str, seconds: int) -> str | None:
        asked.append((path, seconds))
        return f"https://store/{path}" if path == "saved" else None

    hosted = urls(tmp_path)
    hosted._sign = sign
    assert await hosted.url_of(FILE, FileFormat.PNG, "saved", BASE) == "https://store/saved"
    for path in ("unknown", ""):
        url = await hosted.url_of(FILE, FileFormat.PNG, path, BASE)
        assert url
        assert url.startswith(BASE)
    assert asked == [("saved", 60), ("unknown", 60)]


async def test_another_secret_opens_nothing(tmp_path: Path) -> None:
    url = await given_out(urls(tmp_path, b"one"))
    assert (await urls(tmp_path, b"one").read(*url))[0] == FILE
    with pytest.raises(PermissionDenied):
        await urls(tmp_path, b"other").read(*url)


def test_the_processes_of_a_machine_have_one_secret_that_nobody_else_reads(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    assert len({key_in(folder) for _ in range(3)}) == 1
    assert key_in(folder) != key_in(tmp_path / "others")
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert len(file.read_bytes()) == 32


async def test_gateways_that_share_a_redis_answer_for_each_other(redis: RedisServer) -> None:
    states = [SharedState(redis.url, 2.0) for _ in range(2)]
    one, other = (PictureUrls(RedisBackend(state, 60), SharedKey(state), 60) for state in states)
    try:
        url = await given_out(one)
        assert (await other.read(*url))[0] == FILE
    finally:
        for state in states:
            await state.close()


async def test_what_is_too_old_goes_with_the_next_that_comes(tmp_path: Path) -> None:
    backend = DiskBackend(tmp_path, 1 << 16, max_age=0.0)
    for mark in ("0a", "0b"):
        await backend.put(mark, FILE)
    assert await backend.get("0a") is None
    assert await backend.get("0b") == FILE
