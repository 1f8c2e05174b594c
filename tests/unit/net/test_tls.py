"""Certificates that cannot be served with are named before anything starts, and renewed ones are followed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.certificates import Files
from tests.descriptors import no_more_files
from text2image.core.settings import Settings
from text2image.net.tls import Tls, require_usable, runner_tls_of, tls_of


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def tls(files: Files) -> Tls:
    return Tls(files.certificate, files.key, files.ca)


def refusal(tls: Tls | None) -> str:
    with pytest.raises(SystemExit) as ended:
        require_usable(tls)
    line = str(ended.value)
    assert line.startswith("text2image: cannot serve TLS: ")
    assert "\n" not in line
    return line


def test_good_files_pass(tls: Tls) -> None:
    require_usable(tls)
    require_usable(Tls(tls.certificate, tls.key))
    require_usable(None)


@pytest.mark.parametrize("setting", ["CERT", "KEY", "CLIENT_CA"])
def test_a_file_that_cannot_be_read_is_named(tls: Tls, files: Files, setting: str) -> None:
    path = {"CERT": files.certificate, "KEY": files.key, "CLIENT_CA": files.ca}[setting]
    path.write_text("nothing of the kind")
    assert f"T2I_TLS_{setting}={path}: holds no" in refusal(tls)
    path.write_text("-----BEGIN CERTIFICATE----- -----BEGIN PRIVATE KEY----- AAAA")
    assert f"{path}" in refusal(tls)
    path.unlink()
    assert f"T2I_TLS_{setting}={path}: No such file" in refusal(tls)
    path.mkdir()
    assert f"T2I_TLS_{setting}={path}: Is a directory" in refusal(tls)


def test_the_key_of_another_certificate_is_refused(tls: Tls, files: Files, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files.key.write_bytes(Files(tmp_path / "other").key.read_bytes())
    assert f"T2I_TLS_KEY={files.key}: is not the key of T2I_TLS_CERT" in refusal(tls)


def test_a_locked_key_is_refused_and_no_password_is_asked_for(tls: Tls, files: Files) -> None:
    key = load_pem_private_key(files.key.read_bytes(), None)
    lock = BestAvailableEncryption(b"secret")
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    assert "locked with a password" in refusal(tls)


@pytest.mark.parametrize(
    "settings", [{"tls_cert": "c.pem"}, {"tls_key": "k.pem"}, {"tls_client_ca": "ca.pem"}]
)
def test_a_lone_setting_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(SystemExit, match="both T2I_TLS_CERT and T2I_TLS_KEY"):
        tls_of(Settings(**settings))


def test_without_settings_there_is_no_tls() -> None:
    assert tls_of(Settings()) is None
    assert runner_tls_of(Settings()) is None


@pytest.mark.parametrize("left_out", ["cert", "key", "ca"])
def test_between_gateways_and_runners_all_three_files_are_needed(
    files: Files, left_out: str
) -> None:
    named = {"cert": files.certificate, "key": files.key, "ca": files.ca}
    tls = runner_tls_of(Settings(**{f"runner_tls_{name}": path for name, path in named.items()}))
    require_usable(tls)
    named[left_out].write_text("nothing of the kind")
    assert f"T2I_RUNNER_TLS_{left_out.upper()}={named[left_out]}: holds no" in refusal(tls)
    del named[left_out]
    with pytest.raises(SystemExit, match="T2I_RUNNER_TLS_CA"):
        runner_tls_of(Settings(**{f"runner_tls_{name}": path for name, path in named.items()}))


@pytest.fixture
def renewed(tls: Tls, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """What grpc asks before each handshake."""
    monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", lambda _, ask, **__: ask)
    asked = tls.grpc_credentials()
    assert callable(asked)
    return asked


def test_a_certificate_that_could_not_be_read_once_is_read_again(
    files: Files, renewed: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert renewed() is None
    files.certificate.write_bytes(files.certificate.read_bytes() + b"\n")
    with no_more_files():
        assert [renewed(), renewed()] == [None, None]
    assert len(caplog.messages) == 1
    assert renewed() is not None
    assert renewed() is None


def test_a_certificate_written_in_place_with_its_time_set_back_is_noticed(
    files: Files, renewed: Callable[[], object]
) -> None:
    found = files.certificate.stat()
    files.certificate.write_bytes(files.certificate.read_bytes())
    os.utime(files.certificate, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert renewed() is not None
