"""The HTTP port of a runner draws for nobody who could not draw as much at a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from text2image.api import runner_http
from text2image.api.runner_http import RunnerGuard
from text2image.core import keys
from text2image.core.keys import ApiKey, KeysFile, hash_of
from text2image.core.settings import Settings, get_settings

GENERATE, ADMIN, BOTH = ("t2i_" + word * 6 for word in ("drawer", "admins", "either"))
OPEN = ("/livez", "/healthz", "/readyz")
CLOSED = ("/generate", "/", "/schema.json", "/docs.json", "/livez/x", "//livez", "/generate/submit")


async def runner(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it was sent."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"drawn {len(body)}")(scope, receive, send)


async def never(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


async def ask(
    path: str,
    settings: Settings,
    host: str | None = "127.0.0.1",
    *,
    app: object = runner,
    key: str = "",
    content: bytes | AsyncIterator[bytes] = b"",
) -> httpx.Response:
    guard = RunnerGuard(app, settings, lambda: host)  # type: ignore[arg-type]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    transport = httpx.ASGITransport(guard)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://runner") as client:
        return await client.post(path, headers=headers, content=content)


@pytest.fixture
def keyed(tmp_path: Path) -> Settings:
    file = KeysFile(tmp_path / "keys.json")
    for name, key, scopes in (
        ("generate", GENERATE, (keys.Scope.GENERATE,)),
        ("admin", ADMIN, (keys.Scope.ADMIN,)),
        ("both", BOTH, (keys.Scope.ADMIN, keys.Scope.GENERATE)),
    ):
        file.add(ApiKey(name=name, sha256=hash_of(key), created=datetime.now(UTC), scopes=scopes))
    return Settings(keys_file=file.path)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", None])
@pytest.mark.parametrize("path", OPEN)
async def test_probes_are_answered_everywhere(keyed: Settings, host: str | None, path: str) -> None:
    for settings in (Settings(), keyed):
        assert (await ask(path, settings, host)).status_code == 200


@pytest.mark.parametrize("path", CLOSED)
async def test_with_keys_it_draws_for_those_that_no_quota_holds(keyed: Settings, path: str) -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        statuses = [(await ask(path, keyed, host, key=key)).status_code for key in ("", "no")]
        assert statuses == [401, 401]
        assert (await ask(path, keyed, host)).headers["WWW-Authenticate"] == "Bearer"
        for key, status in ((GENERATE, 403), (ADMIN, 403), (BOTH, 200)):
            assert (await ask(path, keyed, host, key=key)).status_code == status


async def test_metrics_ask_for_the_key_that_a_gateways_ask_for(keyed: Settings) -> None:
    assert (await ask("/metrics", keyed)).status_code == 401
    assert (await ask("/metrics", keyed, key=GENERATE)).status_code == 403
    assert (await ask("/metrics", keyed, key=ADMIN)).status_code == 200
    assert (await ask("/metrics", Settings(), "0.0.0.0")).status_code == 200


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize(
    ("settings", "host"),
    [
        (Settings(), "0.0.0.0"),
        (Settings(), "10.1.2.3"),
        (Settings(runner_listen="127.0.0.1:50061"), "127.0.0.1"),
        (Settings(rate_limit="1/day"), "127.0.0.1"),
        (Settings(max_concurrent=1), "127.0.0.1"),
        (Settings(safety="classifier"), "127.0.0.1"),
        (Settings(safety="model"), "127.0.0.1"),
        (Settings(prompt_denylist=Path("denied.txt")), "127.0.0.1"),
    ],
    ids=[
        "all addresses",
        "one of others",
        "gateways elsewhere",
        "a rate limit",
        "a concurrency",
        "pictures looked at",
        "pictures checked",
        "prompts denied",
    ],
)
async def test_without_keys_it_draws_on_its_own_machine_alone_and_where_nothing_is_counted(
    settings: Settings, host: str, path: str
) -> None:
    answer = await ask(path, settings, host)
    assert answer.status_code == 403
    assert "T2I_KEYS_FILE" in answer.json()["message"]
    assert (await ask(path, Settings(), "127.0.0.1")).status_code == 200


@pytest.mark.parametrize("path", [*CLOSED, "/metrics"])
async def test_a_gateways_own_runner_draws_over_http_for_nobody(keyed: Settings, path: str) -> None:
    """BentoML opens a socket for it too, or on some systems a port."""
    assert (await ask(path, Settings(), None)).status_code == 403
    assert (await ask(path, keyed, None, key=BOTH)).status_code == 403


async def test_what_is_refused_is_not_read(keyed: Settings) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    assert (await ask("/generate", keyed, content=body())).status_code == 401


async def test_a_body_is_bounded_and_arrives_whole() -> None:
    limit = get_settings().max_body_bytes
    assert (await ask("/generate", Settings(), content=b"x" * limit)).text == f"drawn {limit}"
    too_large = await ask("/generate", Settings(), content=b"x" * (limit + 1))
    assert too_large.status_code == 413


async def test_an_answer_comes_before_the_deadline_or_is_504() -> None:
    answer = await ask("/generate", Settings(request_timeout=0.01), app=never)
    assert answer.status_code == 504


async def test_failures_are_counted_as_a_gateways_are(keyed: Settings) -> None:
    missing = runner_http.metrics.auth_failures().labels("missing")
    before = missing._value.get()
    await ask("/generate", keyed)
    assert missing._value.get() == before + 1
