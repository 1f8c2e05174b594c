"""Settings come from the environment, and a bad one is named in a line that says what it may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from text2image.core.hardware import runner_addresses
from text2image.core.messages import Sampler
from text2image.core.settings import Settings, get_settings
from text2image.net import wire


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("T2I_THREADS")
    get_settings.cache_clear()


def test_ports_are_read_without_the_prefix_and_all_else_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PORT", "1234")
    monkeypatch.setenv("GRPC_PORT", "1235")
    monkeypatch.setenv("T2I_DEFAULT_SAMPLER", "euler")
    settings = get_settings()
    assert (settings.port, settings.grpc_port) == (1234, 1235)
    assert settings.default_sampler is not None
    assert settings.default_sampler.value == "euler"


def test_a_default_sampler_may_be_written_as_requests_write_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("T2I_DEFAULT_SAMPLER", "Euler a")
    assert get_settings().default_sampler is Sampler.EULER_ANCESTRAL
    get_settings.cache_clear()
    monkeypatch.setenv("T2I_DEFAULT_SAMPLER", "Restart")
    with pytest.raises(SystemExit, match=r"T2I_DEFAULT_SAMPLER=Restart: .*'euler ancestral'"):
        get_settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "abc"),
        ("GRPC_PORT", "70000"),
        ("T2I_DTYPE", "int8"),
        ("T2I_DEFAULT_STEPS", "0"),
        ("T2I_QUALITY", "best"),
        ("T2I_GUIDANCE_INTERVAL", "0.6-0.1"),
    ],
)
def test_a_bad_value_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=f"{variable}={value}"):
        get_settings()


def test_servers_on_one_host_have_sockets_of_their_own() -> None:
    one, other = Settings(GRPC_PORT=1), Settings(GRPC_PORT=2)
    assert one.socket_of(0) != other.socket_of(0)
    assert one.socket_of(0) != one.socket_of(1)
    chosen = Settings(runtime_dir=Path("/somewhere"))
    assert chosen.socket_of(3) == Path("/somewhere/runner-3.sock")


def test_the_largest_picture_fits_into_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_MAX_SIDE", "4096")
    side = get_settings().max_side
    assert side is not None
    assert side * side * 3 < wire.MAX_PICTURE_BYTES - (1 << 20)
    get_settings.cache_clear()
    monkeypatch.setenv("T2I_MAX_SIDE", "4104")
    with pytest.raises(SystemExit, match="T2I_MAX_SIDE=4104"):
        get_settings()


def test_a_variable_set_to_nothing_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("T2I_KEYS_FILE", "T2I_TLS_CERT", "T2I_OUTPUT_DIR", "T2I_REDIS_URL", "PORT"):
        monkeypatch.setenv(variable, "")
    assert get_settings() == Settings.model_construct()


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("T2I_RUNNERS", "2", "T2I_RUNNER_WORKERS"),
        ("T2I_RUNNERS", "10.0.0.7", "10.0.0.7:50061"),
        ("T2I_RUNNERS", "one:50061,::1:50061", "brackets"),
        ("T2I_RUNNERS", "dns:///runners", "host and port"),
        ("T2I_RUNNERS", "unix:run/runner.sock", "whole path"),
        ("T2I_RUNNER_LISTEN", "50061", "10.0.0.7:50061"),
        ("T2I_RUNNER_LISTEN", "0.0.0.0:70000", "host and port"),
    ],
)
def test_what_is_no_address_of_a_runner_is_told_with_what_would_be(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=f"^text2image: {variable}={value}: [^\n]+$") as ended:
        get_settings()
    assert told in str(ended.value).partition(": ")[2].partition(": ")[2]


def test_runners_are_where_they_are_said_to_be_and_each_listens_at_a_port_of_its_own() -> None:
    named = ("unix:/run/runner-0.sock", "10.0.0.7:50061", "[::1]:50061", "dns:///runners:50061")
    assert runner_addresses(Settings(runners=", ".join([*named, named[1]]))) == named
    own = Settings(runtime_dir=Path("/somewhere"), runner_workers=2, runner_listen="[::]:50061")
    assert runner_addresses(own) == tuple(
        f"unix:/somewhere/runner-{index}.sock" for index in (0, 1)
    )
    assert [own.listen_address_of(index) for index in (0, 1)] == [("::", 50061), ("::", 50062)]
    assert Settings().listen_address_of(0) is None


@pytest.mark.parametrize("variable", ["T2I_REDIS_URL", "T2I_CACHE_REDIS_URL"])
@pytest.mark.parametrize("value", ["localhost:6379", "http://localhost", "redis://localhost:a"])
def test_what_is_no_redis_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=f"^text2image: {variable}={value}: [^\n]+$"):
        get_settings()
    get_settings.cache_clear()
    monkeypatch.setenv(variable, "rediss://me:secret@redis.internal:6380/1")
    get_settings()


def test_a_secret_that_is_too_short_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_URL_KEY", "too short")
    with pytest.raises(SystemExit, match=r"^text2image: T2I_URL_KEY=\*\*\*: .*16") as ended:
        get_settings()
    assert "too short" not in str(ended.value)


@pytest.mark.parametrize("value", ["rediss://me:s@cret@localhost:port", "me:s@cret@localhost:1"])
def test_a_password_in_a_url_is_not_told(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("T2I_REDIS_URL", value)
    with pytest.raises(SystemExit, match=r"T2I_REDIS_URL=.*\*\*\*@localhost:") as ended:
        get_settings()
    assert "cret" not in str(ended.value)
