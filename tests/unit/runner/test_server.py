"""A runner that strangers could send work to says so when it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.certificates import Files
from text2image.core.settings import Settings
from text2image.runner.server import exposure, require_guarded


@pytest.mark.parametrize("listen", [None, "127.0.0.1:50061", "localhost:50061", "[::1]:50061"])
def test_nothing_is_said_of_a_runner_that_only_this_machine_reaches(listen: str | None) -> None:
    assert exposure(Settings(runner_listen=listen)) is None


@pytest.mark.parametrize("listen", ["0.0.0.0:50061", "[::]:50061", "gpu-1:50061"])
def test_a_runner_that_others_reach_without_tls_is_told_of(listen: str, tmp_path: Path) -> None:
    warning = exposure(Settings(runner_listen=listen))
    assert warning
    assert listen in warning
    assert "T2I_RUNNER_TLS_CERT" in warning
    files = Files(tmp_path)
    tls = {"cert": files.certificate, "key": files.key, "ca": files.ca}
    secured = {f"runner_tls_{name}": path for name, path in tls.items()}
    assert exposure(Settings(runner_listen=listen, **secured)) is None


def test_a_port_that_would_get_round_the_keys_is_refused(tmp_path: Path) -> None:
    keys = {"keys_file": tmp_path / "keys.json"}
    with pytest.raises(SystemExit, match=r"^text2image: T2I_RUNNER_LISTEN=127.0.0.1:50061 .*$"):
        require_guarded(Settings(runner_listen="127.0.0.1:50061", **keys))
    files = Files(tmp_path)
    tls = {"cert": files.certificate, "key": files.key, "ca": files.ca}
    secured = {f"runner_tls_{name}": path for name, path in tls.items()}
    require_guarded(Settings(runner_listen="127.0.0.1:50061", **keys, **secured))
    require_guarded(Settings(runner_listen="127.0.0.1:50061"))
    require_guarded(Settings(**keys))
