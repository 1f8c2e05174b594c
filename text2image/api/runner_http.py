"""Who may use the HTTP port that BentoML opens for a runner: probes may, and who may draw as much as they like.

A runner's work comes by gRPC, and its gateways ask who wants it and count what is spent. Here nobody counts. So this
port draws for keys that may administer, or on this machine alone where nothing is asked for, counted or denied at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from text2image.api.asgi import after, credentials_of, read_body
from text2image.api.browsers import BrowserGuard
from text2image.api.headers import SecurityHeaders
from text2image.api.rest import error_response
from text2image.core.addresses import is_loopback
from text2image.core.errors import DeadlineExceeded, PermissionDenied, Text2ImageError
from text2image.core.keys import Scope as KeyScope
from text2image.core.settings import Settings
from text2image.gateway.auth import authenticator_of
from text2image.observe import metrics

_PROBES = {"/livez", "/healthz", "/readyz"}
_METRICS = "/metrics"


@dataclass(slots=True)
class _Counts:
    """What an authenticator counts."""

    auth_failures: Counter


def draws_for_all(settings: Settings, host: str) -> bool:
    """Whether a runner that listens on `host` draws over HTTP for whoever comes, as a gateway with its settings would.

    A gateway counts what callers spend, and denies prompts and pictures, which is not done here; and whom the gateways
    of others ask for keys, a runner that serves them must not let in without.
    """
    counted = settings.rate_limit or settings.max_concurrent
    denied = settings.classifies or settings.checks or settings.prompt_denylist
    asked = settings.keys_file or settings.runner_listen or counted or denied
    return is_loopback(host) and not asked


def guards(
    settings: Settings, listening: Callable[[], str | None]
) -> list[tuple[type, dict[str, Any]]]:
    """What stands before a runner's HTTP, outermost first, with its options; `listening` as `RunnerGuard` has it."""
    browsers = {
        "settings": settings,
        "listening": lambda: listening() or settings.host,
        "refuse": lambda _, error: error_response(error),
    }
    runner = {"settings": settings, "listening": listening}
    return [(SecurityHeaders, {}), (BrowserGuard, browsers), (RunnerGuard, runner)]


class RunnerGuard:
    """ASGI middleware of the runner. Refuses before it reads, reads no more than a body may have, and ends in time."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        listening: Callable[[], str | None],
    ) -> None:
        """`listening` tells the address that is listened on; None where the port is one between BentoML's processes.

        Raises:
            KeysError: the keys file cannot be used.
        """
        host = listening()
        self._app = app
        self._settings = settings
        self._is_internal = host is None
        self._draws_for_all = host is not None and draws_for_all(settings, host)
        self._authenticator = authenticator_of(settings, _Counts(metrics.auth_failures()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # Nothing of BentoML's is spoken in web sockets, so nobody needs to be asked.
            return
        if scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        try:
            self._require_allowed(Request(scope))
            await self._answer(scope, receive, send)
        except Text2ImageError as error:
            await error_response(error)(scope, receive, send)

    def _require_allowed(self, request: Request) -> None:
        """
        Raises:
            Unauthenticated: no key is shown where one is asked for, or one that is worth nothing.
            PermissionDenied: nobody may do this here, or not with this key.
        """
        path = request.scope["path"]
        if self._is_internal:
            raise PermissionDenied("this runner works for its gateway alone; ask the gateway")
        if self._settings.keys_file:
            credentials = credentials_of(request)
            self._authenticator.caller(credentials, KeyScope.ADMIN)
            if path != _METRICS:
                self._authenticator.caller(credentials, KeyScope.GENERATE)
        elif path != _METRICS and not self._draws_for_all:
            raise PermissionDenied(
                "this runner draws for its gateways; over HTTP it does so for keys with the scopes admin and generate "
                "where T2I_KEYS_FILE is set, or on HOST=127.0.0.1 without T2I_RUNNER_LISTEN and limits. "
                "Ask a gateway."
            )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """
        Raises:
            PayloadTooLarge: the body is larger than the settings allow.
            Text2ImageError: it did not arrive in time, or there was no answer in time.
        """
        body = await read_body(Request(scope, receive))
        whole: Message = {"type": "http.request", "body": body, "more_body": False}
        began = False

        async def watched(message: Message) -> None:
            nonlocal began
            began = True
            limit.reschedule(None)
            await send(message)

        try:
            async with asyncio.timeout(self._settings.request_timeout) as limit:
                await self._app(scope, after(whole, receive), watched)
        except TimeoutError:
            if began or not limit.expired():
                raise
            raise DeadlineExceeded(
                "the deadline passed before the pictures were finished"
            ) from None
