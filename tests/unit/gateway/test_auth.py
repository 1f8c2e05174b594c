"""With keys only their owners are served, each as its key says; without them everybody is, each as its address."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.descriptors import no_more_files
from text2image.core.addresses import parse_networks
from text2image.core.errors import PermissionDenied, Text2ImageError, Unauthenticated
from text2image.core.keys import ApiKey, KeysError, KeysFile, Scope, hash_of
from text2image.core.limits import Allowance, RateLimit
from text2image.core.messages import Share
from text2image.core.settings import Settings
from text2image.gateway.auth import (
    Authenticator,
    Credentials,
    KeyRing,
    authenticator_of,
    key_in,
    openness,
    require_keys,
)
from text2image.observe.metrics import GatewayMetrics

SECRET = "t2i_0123456789"
EVERYBODY = Allowance((RateLimit(600, "minute"),), 3)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def file(tmp_path: Path) -> KeysFile:
    file = KeysFile(tmp_path / "keys.json")
    file.add(make_key("alice", SECRET))
    return file


def make_key(name: str, key: str, **more: object) -> ApiKey:
    return ApiKey(name=name, sha256=hash_of(key), created=datetime.now(UTC), **more)  # type: ignore[arg-type]


def guarding(file: KeysFile, registry: CollectorRegistry) -> Authenticator:
    return Authenticator(GatewayMetrics(registry), keys=KeyRing(file), everybody=EVERYBODY)


def showing(key: str | None) -> Credentials:
    return Credentials("192.0.2.1", api_key=key)


def test_without_keys_everybody_may_do_everything_and_counts_by_address() -> None:
    metrics = GatewayMetrics(CollectorRegistry())
    open_to_all = Authenticator(
        metrics, everybody=EVERYBODY, trusted_proxies=parse_networks("10.0.0.1")
    )
    for scope in Scope:
        caller = open_to_all.caller(Credentials("192.0.2.1", "198.51.100.7", "a key"), scope)
        assert caller.name == "address:192.0.2.1"
        assert caller.allowance == EVERYBODY
    caller = open_to_all.caller(Credentials("10.0.0.1", "198.51.100.7"), Scope.GENERATE)
    assert caller.share == Share("address:198.51.100.7")


def test_a_key_is_told_by_its_name_and_brings_its_own_limits(
    file: KeysFile, registry: CollectorRegistry
) -> None:
    file.add(make_key("bob", "bobs", priority=70, rate_limit="6/minute", max_concurrent=1))
    guard = guarding(file, registry)
    alice = guard.caller(showing(SECRET), Scope.GENERATE)
    assert (alice.name, alice.share.weight, alice.allowance) == ("key:alice", 10, EVERYBODY)
    bob = guard.caller(showing("bobs"), Scope.GENERATE)
    assert bob.share == Share("key:bob", 70)
    assert bob.allowance == Allowance((RateLimit(6, "minute"),), 1)


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"authorization": "Bearer one", "x-api-key": "two"}, "one"),
        ({"authorization": "Basic bWU6b25l", "x-api-key": "two"}, "two"),
        ({"authorization": "basic bWU6b25lOjE="}, "one:1"),
        ({"authorization": "Basic bWU="}, None),
        ({"authorization": "Basic /w=="}, None),
        ({"authorization": "Basic é"}, None),
        ({"authorization": "Basic"}, None),
        ({"authorization": "Digest one"}, None),
    ],
)
def test_a_key_is_a_bearer_token_a_header_or_a_password(
    headers: dict[str, str], key: str | None
) -> None:
    assert key_in(headers) == key


@pytest.mark.parametrize(
    ("shown", "scope", "error", "why"),
    [
        (None, Scope.GENERATE, Unauthenticated, "missing"),
        ("", Scope.GENERATE, Unauthenticated, "missing"),
        (SECRET + "x", Scope.GENERATE, Unauthenticated, "unknown"),
        (hash_of(SECRET), Scope.GENERATE, Unauthenticated, "unknown"),
        ("\x00é" * 50, Scope.GENERATE, Unauthenticated, "unknown"),
        ("x" * 1_000_000, Scope.GENERATE, Unauthenticated, "unknown"),
        ("old", Scope.GENERATE, Unauthenticated, "expired"),
        (SECRET, Scope.ADMIN, PermissionDenied, "scope"),
    ],
)
def test_who_may_not_is_refused_counted_and_not_quoted(
    file: KeysFile,
    registry: CollectorRegistry,
    caplog: pytest.LogCaptureFixture,
    shown: str | None,
    scope: Scope,
    error: type[Text2ImageError],
    why: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    file.add(make_key("old", "old", expires=datetime.now(UTC) - timedelta(seconds=1)))
    with pytest.raises(error) as refused:
        guarding(file, registry).caller(showing(shown), scope)
    assert registry.get_sample_value("text2image_auth_failures_total", {"why": why}) == 1
    for text in (refused.value.message, caplog.text):
        assert SECRET not in text
    assert len(refused.value.message) < 200
    assert SECRET not in repr(showing(SECRET))


def test_keys_are_followed_from_one_request_to_the_next(
    file: KeysFile, registry: CollectorRegistry
) -> None:
    guard = guarding(file, registry)
    file.add(make_key("bob", "bobs"))
    assert guard.caller(showing("bobs"), Scope.GENERATE).name == "key:bob"
    file.remove("alice")
    with pytest.raises(Unauthenticated):
        guard.caller(showing(SECRET), Scope.GENERATE)


@pytest.mark.parametrize("text", [None, "half of {"], ids=["gone", "broken"])
def test_a_file_that_cannot_be_used_changes_nothing_and_is_told_of_once(
    file: KeysFile, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    guard = guarding(file, registry)
    kept = file.path.read_bytes()
    file.path.write_text(text) if text else file.path.unlink()
    for _ in range(3):
        assert guard.caller(showing(SECRET), Scope.GENERATE).name == "key:alice"
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "going on with the keys from before" in errors[0].getMessage()
    file.path.write_bytes(kept)
    file.add(make_key("bob", "bobs"))
    assert guard.caller(showing("bobs"), Scope.GENERATE).name == "key:bob"


def test_another_file_of_the_same_time_and_length_is_noticed(
    file: KeysFile, registry: CollectorRegistry
) -> None:
    guard = guarding(file, registry)
    found = file.path.stat()
    other = file.path.with_suffix(".new")
    other.write_text(file.path.read_text().replace('"alice"', '"alina"'))
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.replace(file.path)
    assert guard.caller(showing(SECRET), Scope.GENERATE).name == "key:alina"


def test_a_file_written_in_place_with_its_time_set_back_is_noticed(
    file: KeysFile, registry: CollectorRegistry
) -> None:
    guard = guarding(file, registry)
    found = file.path.stat()
    file.path.write_text(file.path.read_text().replace('"alice"', '"alina"'))
    os.utime(file.path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert guard.caller(showing(SECRET), Scope.GENERATE).name == "key:alina"


def test_a_file_that_could_not_be_read_once_is_read_again(
    file: KeysFile, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    guard = guarding(file, registry)
    file.remove("alice")
    with no_more_files():
        for _ in range(3):
            assert guard.caller(showing(SECRET), Scope.GENERATE).name == "key:alice"
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1
    with pytest.raises(Unauthenticated):
        guard.caller(showing(SECRET), Scope.GENERATE)


def test_no_server_starts_with_a_keys_file_that_cannot_be_used(tmp_path: Path) -> None:
    settings = Settings(keys_file=tmp_path / "keys.json")
    with pytest.raises(SystemExit, match=r"keys\.json: No such file.*text2image\.keys create"):
        require_keys(settings)
    with pytest.raises(KeysError):
        authenticator_of(settings, GatewayMetrics(CollectorRegistry()))
    KeysFile(tmp_path / "keys.json").add(make_key("alice", SECRET))
    require_keys(settings)


@pytest.mark.parametrize(
    ("hosts", "warned"),
    [
        (("127.0.0.1", "127.0.0.1"), False),
        (("::1", "localhost"), False),
        (("127.0.0.1", "0.0.0.0"), True),
        (("::", "127.0.0.1"), True),
        (("example.com", "127.0.0.1"), True),
    ],
)
def test_who_listens_to_everybody_without_keys_is_warned(
    hosts: tuple[str, ...], warned: bool, file: KeysFile
) -> None:
    warning = openness(Settings(), *hosts)
    assert bool(warning) == warned
    if warning:
        assert "T2I_KEYS_FILE" in warning
        assert "text2image.keys create" in warning
    encrypted = {"tls_cert": file.path, "tls_key": file.path}
    assert openness(Settings(keys_file=file.path, **encrypted), *hosts) is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"keys_file": "keys"}, "without TLS"),
        ({"keys_file": "keys", "trusted_proxies": "10.0.0.1"}, None),
        ({"tls_cert": "cert", "tls_key": "key"}, "without API keys"),
        ({"tls_cert": "cert", "tls_key": "key", "tls_client_ca": "ca"}, None),
    ],
    ids=["keys in plain", "keys behind a proxy", "TLS for all", "mutual TLS"],
)
def test_keys_in_plain_are_warned_of_and_certificates_let_nobody_else_in(
    settings: dict[str, str], expected: str | None
) -> None:
    warning = openness(Settings(**settings), "0.0.0.0")
    assert (expected in warning) if warning and expected else warning is expected
    assert openness(Settings(**settings), "127.0.0.1") is None
