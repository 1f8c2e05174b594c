"""The same request with the same seed is drawn once, whoever asks, however, and whenever."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.harness import Server, eventually, serving
from tests.e2e.test_bad_input import call_seed
from tests.e2e.test_cancellation import LONG, is_idle
from tests.e2e.test_pictures import assert_same, image_of
from tests.redis import RedisServer
from text2image.client import Client
from text2image.core.messages import Counters, Progress
from text2image.net import text2image_pb2 as pb

# Room for a few pictures of the embedded model.
BOUND = 60_000


@pytest.fixture(scope="module")
def remembering(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a small cache."""
    folder = tmp_path_factory.mktemp("cache")
    with serving(Server(folder, engine_of=server, T2I_CACHE_BYTES=str(BOUND))) as remembering:
        yield remembering


@pytest.fixture
def remembering_client(remembering: Server) -> Iterator[Client]:
    with remembering.client() as client:
        yield client


def entries(server: Server) -> list[Path]:
    """What is kept; what is just being written is not yet."""
    folder = server.folder / "cache/pictures"
    return [path for path in folder.iterdir() if path.name[0] != "." and path.suffix != ".part"]


def bytes_kept(server: Server) -> int:
    total = 0
    for path in entries(server):
        # Room may be made for what was drawn last.
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def counters(server: Server) -> Counters:
    return server.wait_for(is_idle, "the engine is idle").counters


def rest(server: Server, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/generate", json={"text": "a fox", **fields}, timeout=120)


def openai(server: Server, **fields: Any) -> httpx.Response:
    url = f"{server.url}/v1/images/generations"
    return httpx.post(url, json={"prompt": "a fox", **fields}, timeout=120)


def png_of(answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["image_base64"])


def outcomes(server: Server, outcome: str) -> float:
    return server.metric(f'text2image_cache_total{{outcome="{outcome}"}}')


def test_servers_that_share_a_redis_share_their_pictures(
    server: Server, tmp_path: Path, redis: RedisServer
) -> None:
    fields = {"steps": 2, "seed": 6}
    with serving(Server(tmp_path / "one", engine_of=server, T2I_REDIS_URL=redis.url)) as one:
        first = rest(one, **fields)
        assert first.headers["X-Cache"] == "miss"
    with serving(Server(tmp_path / "two", engine_of=server, T2I_CACHE_REDIS_URL=redis.url)) as two:
        again = rest(two, **fields)
        assert again.headers["X-Cache"] == "hit"
        assert png_of(again) == png_of(first)
        assert Path(again.json()["image_path"]).parent == two.pictures
        assert not (two.folder / "cache").exists()
        redis.kill()
        for _ in range(2):
            alone = rest(two, **fields)
            assert alone.headers["X-Cache"] == "miss"
            assert png_of(alone) == png_of(first)
        redis.restart()
        eventually(lambda: rest(two, **fields).json()["cached"], "Redis is used again")


def test_the_same_seed_again_is_the_same_picture_on_every_transport(
    remembering: Server, remembering_client: Client
) -> None:
    before, hits = counters(remembering), outcomes(remembering, "hit")
    fields = {"steps": 2, "seed": 1}
    first = rest(remembering, **fields)
    assert (first.headers["X-Cache"], first.json()["cached"]) == ("miss", False)
    again = rest(remembering, **fields)
    assert (again.headers["X-Cache"], again.json()["cached"]) == ("hit", True)
    assert again.json() == {**first.json(), "cached": True}

    picture = remembering_client.generate("a fox", **fields)[0]
    assert picture.cached
    seed = call_seed(remembering, pb.ImageRequest(text="a fox", **fields).SerializeToString())
    assert seed.cached
    images = openai(remembering, **fields)
    assert (images.headers["X-Cache"], images.json()["cached"]) == ("hit", True)
    stream = openai(remembering, **fields, stream=True)
    completed = json.loads(stream.text.split("data: ")[-1])
    assert completed["cached"]
    pngs = (seed.image_base64, images.json()["data"][0]["b64_json"], completed["b64_json"])
    for png in (picture.png, *map(base64.b64decode, pngs)):
        assert png == png_of(first)
    assert counters(remembering).admitted == before.admitted + 1
    assert outcomes(remembering, "hit") == hits + 5


def test_without_a_seed_every_picture_is_new(
    remembering: Server, remembering_client: Client
) -> None:
    before = counters(remembering)
    answers = [rest(remembering, steps=2) for _ in range(2)]
    assert len({answer.json()["seed"] for answer in answers}) == 2
    for answer in answers:
        assert "X-Cache" not in answer.headers
        assert not answer.json()["cached"]
    assert not remembering_client.generate("a fox", steps=2)[0].cached
    assert counters(remembering).admitted == before.admitted + 3


def test_many_at_once_are_drawn_once(remembering: Server, remembering_client: Client) -> None:
    before = counters(remembering)
    fields = {"steps": 20, "seed": 2}
    with ThreadPoolExecutor(20) as pool:
        over_http = [pool.submit(rest, remembering, **fields) for _ in range(10)]
        over_grpc = [pool.submit(remembering_client.generate, "a fox", **fields) for _ in range(10)]
        pictures = {png_of(answer.result()) for answer in over_http}
        pictures |= {answer.result()[0].png for answer in over_grpc}
    assert len(pictures) == 1
    after = counters(remembering)
    assert after.admitted == before.admitted + 1
    assert after.sample_steps == before.sample_steps + 20


def test_one_of_those_who_share_may_leave_and_the_last_one_ends_the_work(
    remembering: Server, remembering_client: Client
) -> None:
    before = counters(remembering)
    streams = [remembering_client.stream("a fox", steps=LONG, seed=3) for _ in range(2)]
    for stream in streams:
        assert any(isinstance(event, Progress) for event in stream)
    streams[0].close()
    assert any(isinstance(event, Progress) for event in streams[1])
    assert remembering.wait_for(lambda status: status.active == 1, "one is drawn")
    streams[1].close()
    after = counters(remembering)
    assert after.cancelled == before.cancelled + 1
    assert after.admitted == before.admitted + 1
    assert after.steps_saved > before.steps_saved


def test_a_damaged_entry_is_drawn_anew(remembering: Server) -> None:
    before = counters(remembering)
    fields = {"steps": 2, "seed": 4}
    known = set(entries(remembering))
    first = rest(remembering, **fields)
    # It is kept after the answer.
    (newest,) = eventually(lambda: set(entries(remembering)) - known, "the picture is kept")
    newest.write_bytes(newest.read_bytes()[:-1])
    missed, hit = (rest(remembering, **fields) for _ in range(2))
    assert [again.headers["X-Cache"] for again in (missed, hit)] == ["miss", "hit"]
    # Drawn by another graph, compiled meanwhile, it may be one of 255 apart.
    assert_same(image_of(missed.json()["image_base64"]), image_of(first.json()["image_base64"]))
    assert png_of(hit) == png_of(missed)
    assert counters(remembering).admitted == before.admitted + 2
    assert remembering.log.count("of the cache is removed") == 1


def test_a_file_that_is_gone_is_saved_again(remembering: Server) -> None:
    fields = {"steps": 2, "seed": 5}
    Path(rest(remembering, **fields).json()["image_path"]).unlink()
    again = rest(remembering, **fields)
    assert again.headers["X-Cache"] == "hit"
    assert Path(again.json()["image_path"]).read_bytes() == png_of(again)
    assert rest(remembering, **fields).json() == again.json()


def test_the_cache_stays_within_its_bound(remembering: Server) -> None:
    # 24 pictures of about 8 kB, whatever the model makes of them after one step.
    fields = {"steps": 1, "width": 128, "height": 128}
    for seed in range(100, 124, 8):
        assert rest(remembering, **fields, seed=seed, n=8).json()["status_code"] == 200
        assert bytes_kept(remembering) <= BOUND
    # The last ones are kept after their answer.
    eventually(
        lambda: rest(remembering, **fields, seed=123).headers["X-Cache"] == "hit", "it is kept"
    )
    assert rest(remembering, **fields, seed=100).headers["X-Cache"] == "miss"
