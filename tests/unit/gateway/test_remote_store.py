"""Pictures in an object store: moto's server speaks S3 on a real port, and s3fs speaks it to that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from text2image.core.settings import Settings
from text2image.gateway import remote_store
from text2image.gateway.remote_store import RemoteStore, store_of
from text2image.gateway.store import NotSaved, Store

BUCKET, FOLDER = "pictures", "drawn/today"
URL = f"s3://{BUCKET}/{FOLDER}"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket, and an environment that leads there."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # fsspec keeps file systems by their arguments, and this one has none.
    monkeypatch.setattr("s3fs.S3FileSystem.cachable", False)
    bucket = boto3.resource("s3").create_bucket(Bucket=BUCKET)
    yield bucket
    bucket.objects.delete()


def content(bucket: Any, url: str) -> bytes:
    read: bytes = bucket.Object(url.removeprefix(f"s3://{BUCKET}/")).get()["Body"].read()
    return read


def test_a_picture_lies_below_the_url_under_a_name_that_tells_what_it_is(bucket: Any) -> None:
    url = RemoteStore(f"{URL}/").save(b"png", "A red fox")
    assert re.fullmatch(rf"{URL}/red_fox_\d{{8}}_\d{{6}}_[0-9a-f]{{16}}\.png", url)
    assert content(bucket, url) == b"png"


def test_names_are_unique_under_concurrency(bucket: Any) -> None:
    store = RemoteStore(URL)
    contents = [str(number).encode() for number in range(50)]
    with ThreadPoolExecutor(8) as pool:
        urls = list(pool.map(lambda png: store.save(png, "same"), contents))
    assert len(set(urls)) == len(contents)
    assert [content(bucket, url) for url in urls] == contents


@pytest.mark.parametrize("title", ["../../else", "s3://other/x", "a/b?c#d", "\0\n"])
def test_nothing_lies_outside_the_folder(bucket: Any, title: str) -> None:
    store = RemoteStore(URL)
    store.save(b"png", title)
    store.save_once(b"png", title, "0123")
    for written in bucket.objects.all():
        assert re.fullmatch(rf"{FOLDER}/[^/]+\.png", written.key)


def test_a_mark_is_one_object_with_its_latest_picture(bucket: Any) -> None:
    store = RemoteStore(URL)
    url = store.path_of("a fox", "0123")
    assert not store.holds(url, b"whole")
    for png in (b"cut", b"whole"):
        assert store.save_once(png, "a fox", "0123") == url
    assert store.holds(url, b"whole")
    assert not store.holds(url, b"cut")
    assert not store.holds(url.replace(FOLDER, "elsewhere"), b"whole")
    (written,) = bucket.objects.all()
    written.delete()
    assert not store.holds(url, b"whole")


def test_whoever_has_a_signed_url_may_read_its_picture_and_no_other(bucket: Any) -> None:
    store = RemoteStore(URL)
    path = store.save(b"jpeg", "a fox", ".jpg")
    url = store.signed(path, 60)
    assert url
    assert httpx.get(url).content == b"jpeg"
    assert "X-Amz-Expires=60" in url
    assert store.signed(path.replace(FOLDER, "elsewhere"), 60) is None
    assert RemoteStore("memory://pictures").signed("memory://pictures/fox.png", 60) is None


@pytest.mark.parametrize("what", ["no bucket", "no server"])
def test_a_store_that_does_not_take_pictures_is_said_in_time(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    monkeypatch.setattr(remote_store, "PATIENCE", 2.0)
    if what == "no server":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = RemoteStore(URL if what == "no server" else "s3://nobodys/folder")
    with pytest.raises(NotSaved):
        store.save(b"png", "a secret fox")
    told = [each.getMessage() for each in caplog.records if each.name.startswith("text2image")]
    assert told
    assert not any("secret" in line for line in told)
    assert not store.holds(store.path_of("a", "1"), b"png")


def test_settings_choose_the_place(tmp_path: Any) -> None:
    assert isinstance(store_of(Settings(output_dir=tmp_path)), Store)
    assert isinstance(store_of(Settings(output_dir="memory://pictures")), RemoteStore)
    assert store_of(Settings(save_images=False)) is None
    with pytest.raises(SystemExit, match=r"^text2image: T2I_OUTPUT_DIR=s4://bucket: .*s4"):
        store_of(Settings(output_dir="s4://bucket"))
