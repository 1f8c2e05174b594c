"""Clients for JavaScript draw with this server as with OpenAI's."""

from __future__ import annotations

import pytest

from tests.clients.harness import NODE, kind_of, printed
from tests.e2e.harness import Server

pytestmark = pytest.mark.clients


def test_openai_for_javascript(server: Server) -> None:
    got = printed(server, "node", NODE / "openai.mjs")
    assert [kind_of(picture) for picture in got["pictures"]] == [("JPEG", (128, 128))] * 2
    assert got["request"]
    assert got["usage"]["output_tokens"] == 32
    assert got["type"] == "image/png"
    kinds = [event["type"] for event in got["events"]]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert got["events"][-1]["usage"]["output_tokens"] == 16
    assert got["refused"]["request"]
    assert (got["refused"]["status"], got["refused"]["param"]) == (400, "size")
    assert got["models"] == ["embedded"]


def test_the_ai_sdk(server: Server) -> None:
    got = printed(server, "node", NODE / "ai-sdk.mjs")
    assert [kind_of(each["picture"]) for each in got["alias"]] == [("WEBP", (128, 128))] * 2
    assert [each["type"] for each in got["alias"]] == ["image/webp"] * 2
    for asked in ("own", "compatible"):
        assert [kind_of(each["picture"]) for each in got[asked]] == [("PNG", (64, 64))]
