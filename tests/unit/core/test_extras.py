"""What is set and not installed says which extra to install, in one line, before anything is started."""

from __future__ import annotations

from typing import Any

import pytest

from text2image.core import extras
from text2image.core.extras import require_extras
from text2image.core.settings import Settings


@pytest.mark.parametrize(
    ("settings", "variable", "extra"),
    [
        ({"redis_url": "redis://localhost"}, "T2I_REDIS_URL", "redis"),
        ({"cache_redis_url": "redis://localhost"}, "T2I_CACHE_REDIS_URL", "redis"),
        ({"otlp_endpoint": "http://localhost:4318"}, "T2I_OTLP_ENDPOINT", "otlp"),
        ({"transformer": "flux1-dev-Q4_K.gguf"}, "T2I_TRANSFORMER", "gguf"),
        ({"page_port": 8501}, "T2I_PAGE_PORT", "page"),
        ({"output_dir": "s3://pictures"}, "T2I_OUTPUT_DIR", "s3"),
        ({"c2pa_cert": "chain.pem"}, "T2I_C2PA_CERT", "c2pa"),
        ({"upscalers": "upscalers"}, "T2I_UPSCALERS", "upscale"),
    ],
)
def test_what_is_set_and_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], variable: str, extra: str
) -> None:
    require_extras(Settings(**settings))
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    told = rf'{variable} needs the extra "{extra}": pip install (--no-deps )?-r requirements/{extra}\.txt'
    with pytest.raises(SystemExit, match=told):
        require_extras(Settings(**settings))


def test_what_is_not_set_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    require_extras(Settings())
