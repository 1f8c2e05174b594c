"""A cache answers with the right picture or not at all, stays within its bounds, and fails no request."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.redis import RedisServer
from tests.samples import MODEL, REQUEST, begun, requests
from text2image.core.messages import Completed, Picture, Quality, Request, Timings
from text2image.core.settings import Settings
from text2image.gateway.cache import NotAnEntry, PictureCache, key_of, pack, unpack
from text2image.gateway.cache_backends import DiskBackend
from text2image.gateway.shared.cache import RedisBackend
from text2image.gateway.shared.state import SharedState

PICTURE = Picture(
    index=0,
    seed=7,
    width=128,
    height=96,
    png=b"a picture",
    path="generated_images/fox.png",
    timings=Timings(0.5, 1.25, 0.1),
)
KEY = key_of(REQUEST, 0, MODEL)


def key(number: int) -> str:
    return f"{number:064x}"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name[0] != ".")


@given(requests | begun, requests | begun)
def test_two_pictures_have_one_key_only_where_nothing_tells_them_apart(
    one: Request, other: Request
) -> None:
    """Each field alone makes a difference."""
    for field in fields(Request):
        if field.name == "n":
            continue
        changed = replace(one, **{field.name: getattr(other, field.name)})
        assert (key_of(changed, 0, MODEL) == key_of(one, 0, MODEL)) == (changed == one)


def test_what_is_decoded_in_tiles_is_another_picture_and_what_is_not_is_the_same() -> None:
    pixels = REQUEST.width * REQUEST.height
    keys = [key_of(REQUEST, 0, replace(MODEL, tiled_above=above)) for above in (0, pixels)]
    assert keys == [KEY, KEY]
    tiled = [key_of(REQUEST, 0, replace(MODEL, tiled_above=pixels - each)) for each in (1, 2)]
    assert len({KEY, *tiled}) == 3


@pytest.mark.parametrize("field", ["id", "revision", "dtype"])
def test_another_model_draws_another_picture(field: str) -> None:
    assert key_of(REQUEST, 0, replace(MODEL, **{field: "other"})) != KEY


def test_what_fast_pictures_are_spared_makes_another_picture_of_those_alone() -> None:
    other = replace(MODEL, fast="guidance outside of 0-0.3 of the passes")
    fast = replace(REQUEST, quality=Quality.FAST)
    assert key_of(fast, 0, other) != key_of(fast, 0, MODEL)
    assert key_of(REQUEST, 0, other) == KEY


@given(requests | begun, st.integers(1, 8))
def test_a_picture_of_many_has_the_key_of_its_seed_alone(request: Request, n: int) -> None:
    for index in range(n):
        alone = replace(request, seed=request.seed_of(index))
        assert key_of(replace(request, n=n), index, MODEL) == key_of(alone, 0, MODEL)


@given(st.binary(), st.text(), st.floats(0, 1e6), st.integers(0, 2**63 - 1))
def test_an_entry_holds_all_of_its_picture(
    png: bytes, text: str, seconds: float, seed: int
) -> None:
    picture = replace(PICTURE, png=png, path=text, seed=seed, timings=Timings(seconds, 0, seconds))
    ended = Completed(text, text)
    assert unpack(KEY, pack(KEY, picture, ended)) == (replace(picture, cached=True), ended)


@given(st.data())
def test_an_entry_that_is_not_whole_is_none(data: st.DataObject) -> None:
    entry = pack(KEY, PICTURE, Completed("and a dog"))
    place = data.draw(st.integers(0, len(entry) - 1))
    changed = bytearray(entry)
    changed[place] ^= data.draw(st.integers(1, 255))
    for damaged in (
        bytes(changed),
        entry[:place],
        entry + b"x",
        entry[:place] + entry[place + 1 :],
    ):
        with pytest.raises(NotAnEntry):
            unpack(KEY, damaged)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("another picture's", pack(key(1), PICTURE, Completed())),
        ("another form", pickle.dumps(PICTURE)),
        ("an older form", pack(KEY, PICTURE, Completed()).replace(b"picture 1", b"picture 0")),
        ("nothing", b""),
    ],
)
def test_a_foreign_entry_is_none(name: str, entry: bytes) -> None:
    with pytest.raises(NotAnEntry):
        unpack(KEY, entry)


def of_an_earlier_version(truncated: str) -> bytes:
    """An entry of before negative prompts were told of, and prompts read in chunks."""
    entry = pack(KEY, PICTURE, Completed(truncated))
    magic = entry[: entry.index(b"\n") + 1]
    start = len(magic) + hashlib.sha256().digest_size + 4
    told = json.loads(entry[start : len(entry) - len(PICTURE.png)])
    del told["left_out_negative"]
    text = json.dumps(told).encode()
    content = len(text).to_bytes(4) + text + PICTURE.png
    return magic + hashlib.sha256(KEY.encode() + content).digest() + content


def test_an_earlier_entry_holds_its_picture_unless_more_of_its_prompt_is_read_now() -> None:
    _, ended = unpack(KEY, of_an_earlier_version(""))
    assert ended == Completed()
    with pytest.raises(NotAnEntry, match="read less of its prompt"):
        unpack(KEY, of_an_earlier_version("and a dog"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


async def test_what_was_kept_is_recalled_picture_by_picture(folder: Path) -> None:
    cache = PictureCache(DiskBackend(folder, 1 << 20))
    two = replace(REQUEST, n=2)
    pictures = [replace(PICTURE, index=index, seed=REQUEST.seed_of(index)) for index in (0, 1)]
    await cache.keep(two, MODEL, pictures, Completed("and a dog", "blur"))
    recalled = await PictureCache(DiskBackend(folder, 1 << 20)).recall(two, MODEL)
    assert recalled
    assert recalled.pictures == [replace(picture, cached=True) for picture in pictures]
    assert recalled.completed == Completed("and a dog", "blur")
    second = await cache.recall(replace(REQUEST, seed=REQUEST.seed_of(1)), MODEL)
    assert second
    assert second.pictures == [replace(pictures[1], index=0, cached=True)]
    assert not await cache.recall(replace(REQUEST, n=3), MODEL)


async def test_a_damaged_entry_is_removed_and_told_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = PictureCache(DiskBackend(folder, 1 << 20))
    await cache.keep(REQUEST, MODEL, [PICTURE], Completed())
    (folder / KEY).write_bytes((folder / KEY).read_bytes()[:-1])
    assert not await cache.recall(REQUEST, MODEL)
    assert not (folder / KEY).exists()
    assert not await cache.recall(REQUEST, MODEL)
    assert [KEY in line for line in caplog.messages] == [True]


async def test_the_disk_holds_no_more_than_its_bound(folder: Path) -> None:
    """Whoever writes: every backend here stands for a process."""
    shelves = [DiskBackend(folder, 10_000) for _ in range(3)]
    for number in range(100):
        await shelves[number % 3].put(key(number), bytes(100 + 13 * (number % 40)))
        assert size_of(folder) <= 10_000
    assert size_of(folder) > 7_000
    await shelves[0].put(key(1000), bytes(10_001))
    assert 7_000 < size_of(folder) <= 10_000, "what cannot fit makes no room"


async def test_what_was_not_used_for_longest_goes_first(folder: Path) -> None:
    backend = DiskBackend(folder, 1000)
    for number in range(9):
        await backend.put(key(number), bytes(100))
        os.utime(folder / key(number), (number, number))
    assert await backend.get(key(0))
    for number in range(9, 12):
        await backend.put(key(number), bytes(100))
    kept = {number for number in range(12) if (folder / key(number)).exists()}
    assert {0, 9, 10, 11} <= kept
    assert kept & {1, 2} == set()


def test_many_writers_leave_the_folder_whole_and_within_its_bound(folder: Path) -> None:
    def work(worker: int) -> None:
        backend = DiskBackend(folder, 20_000)
        for number in range(50):
            asyncio.run(backend.put(key(number), b"%d" % number * 200))
            found = asyncio.run(backend.get(key(number)))
            assert found in (None, b"%d" % number * 200)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert size_of(folder) <= 20_000
    assert not list(folder.glob("*.part"))


async def test_what_a_killed_process_left_is_cleared_away(folder: Path) -> None:
    backend = DiskBackend(folder, 1000)
    for number in range(8):
        await backend.put(key(number), bytes(100))
    (folder / ".bytes").write_bytes(b"")
    (folder / "half.part").write_bytes(bytes(500))
    await backend.put(key(9), bytes(100))
    assert not (folder / "half.part").exists()
    assert size_of(folder) == 900


async def test_a_process_that_stopped_while_writing_stops_no_other(folder: Path) -> None:
    backend = DiskBackend(folder, 1000)
    await backend.put(key(1), b"one")
    with (folder / ".bytes").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        await backend.put(key(2), b"two")
        assert await backend.get(key(1)) == b"one"
    assert await backend.get(key(2)) is None
    await backend.put(key(2), b"two")
    assert await backend.get(key(2)) == b"two"


def fill(path: Path, content: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_a_full_disk_is_told_once_and_costs_no_more_than_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = DiskBackend(folder, 1000)
    await backend.put(key(0), b"before")
    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", fill)
        for number in (1, 2, 3):
            await backend.put(key(number), b"entry")
            assert await backend.get(key(number)) is None
    assert await backend.get(key(0)) == b"before"
    assert len(caplog.messages) == 1
    assert "No space left" in caplog.text
    await backend.put(key(4), b"after")
    assert await backend.get(key(4)) == b"after"


def nothing(folder: Path) -> None:
    folder.parent.joinpath("file").write_bytes(b"")
    folder.symlink_to("file")


@pytest.mark.parametrize(
    "spoil",
    [lambda folder: (folder.mkdir(), folder.chmod(0o755)), nothing],
    ids=["open to others", "no folder"],
)
async def test_a_folder_that_is_not_ours_alone_is_never_believed(
    folder: Path, spoil: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(spoil)
    spoil(folder)
    backend = DiskBackend(folder, 1000)
    await backend.put(key(1), b"entry")
    assert await backend.get(key(1)) is None
    assert len(caplog.messages) == 1
    assert "T2I_CACHE_DIR" in caplog.text


def test_the_folder_is_this_users_alone(folder: Path) -> None:
    asyncio.run(DiskBackend(folder, 1000).put(key(1), b"entry"))
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_default_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert Settings().picture_cache_dir == Path("/somewhere/text2image/pictures")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Settings().picture_cache_dir == Path.home() / ".cache/text2image/pictures"
    monkeypatch.setenv("T2I_CACHE_DIR", "/elsewhere")
    assert Settings().picture_cache_dir == Path("/elsewhere/pictures")


async def test_redis_keeps_what_was_used_lately_for_all_who_share_it(redis: RedisServer) -> None:
    one, other = SharedState(redis.url), SharedState(redis.url)
    await RedisBackend(one, 1000).put(key(1), b"entry")
    with redis.connection as connection:
        (name,) = connection.keys()
        assert 0 < connection.ttl(name) <= 1000
        assert await RedisBackend(other, 5000).get(key(1)) == b"entry"
        assert connection.ttl(name) > 1000
    await RedisBackend(one, 1000).drop(key(1))
    assert await RedisBackend(other, 1000).get(key(1)) is None
    await asyncio.gather(one.close(), other.close())


async def test_a_full_redis_is_told_once_and_goes_on_with_all_else(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    shared = SharedState(redis.url)
    backend = RedisBackend(shared, 1000)
    await backend.put(key(1), b"entry")
    with redis.connection as connection:
        for times in (1, 2):
            connection.config_set("maxmemory", "1")
            for _ in range(3):
                await backend.put(key(2), b"entry")
                assert await backend.get(key(2)) is None
            assert len(caplog.messages) == times
            assert await backend.get(key(1)) == b"entry"
            # What was full and is so again is news.
            connection.config_set("maxmemory", "0")
            await backend.put(key(3), b"entry")
    assert await shared.ask(lambda asked: asked.ping())
    await shared.close()


async def test_without_redis_nothing_is_remembered_and_nothing_fails(redis: RedisServer) -> None:
    shared = SharedState(redis.url)
    backend = RedisBackend(shared, 1000)
    await backend.put(key(1), b"entry")
    redis.kill()
    assert await backend.get(key(1)) is None
    await backend.put(key(2), b"entry")
    await shared.close()
