"""What pages in a browser may do: a page of a foreign origin nothing, unless the settings name it.

A browser sends what any page asks for to a server on its own machine or network. So the server looks at the two headers
that no page can forge: `Host`, which names the page's own server even where that name was rebound to this machine's
address, and `Origin`, which names where the page came from.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from text2image.core.addresses import is_loopback
from text2image.core.errors import PermissionDenied, Text2ImageError
from text2image.core.settings import Settings
from text2image.observe import tracing

# What stands for all names, and for all origins.
ANY = "*"
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
# What a page of another origin may read.
_EXPOSED_HEADERS = [
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "X-Cache",
    "X-Request-Id",
    tracing.TRACE_HEADER,
]


def cors_options(origins: str | None) -> dict[str, Any]:
    """What BentoML's `http` needs so that pages of these origins, with commas between, may call us; nothing without."""
    if origins is None:
        return {}
    return {
        "cors": {
            "enabled": True,
            "access_control_allow_origins": origins.split(","),
            "access_control_allow_methods": ["GET", "HEAD", "POST"],
            # Official clients send headers of their own, as `x-stainless-os`, and new versions send others.
            "access_control_allow_headers": [ANY],
            "access_control_expose_headers": _EXPOSED_HEADERS,
        }
    }


def known_hosts(settings: Settings, listening: str) -> frozenset[str]:
    """The names that a server listening on an address answers to; `*` where they do no harm.

    Unless the settings name some, only a server that trusts whatever comes from its own machine cares. Keys and
    certificates keep strangers out by themselves, and a proxy that is named answers for the names before it.
    """
    if settings.allowed_hosts is not None:
        named = frozenset(settings.allowed_hosts.lower().split(","))
    elif (
        not is_loopback(listening)
        or settings.keys_file
        or settings.tls_cert
        or settings.trusted_proxies
    ):
        named = frozenset({ANY})
    else:
        named = frozenset()
    return named | {"localhost", settings.host.lower(), socket.gethostname().lower()}


class BrowserGuard:
    """ASGI middleware. Refuses requests for foreign hosts, and those of foreign pages that could change anything."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        listening: Callable[[], str],
        refuse: Callable[[str, Text2ImageError], Response],
    ) -> None:
        """`listening` tells the address that is listened on, `refuse` makes an answer of a path and its error."""
        self._app = app
        self._hosts = known_hosts(settings, listening())
        self._origins = settings.cors_origins.split(",") if settings.cors_origins else ()
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and (
            error := self._error(scope["method"], Headers(scope=scope))
        ):
            app = self._refuse(scope["path"], error)
        await app(scope, receive, send)

    def _error(self, method: str, headers: Headers) -> PermissionDenied | None:
        host, origin = headers.get("Host"), headers.get("Origin")
        if host is not None and not is_known(host, self._hosts):
            return PermissionDenied(
                f"this server does not answer to the host {host[:80]!r}; if it should, name it in T2I_ALLOWED_HOSTS"
            )
        if method in _SAFE_METHODS or ANY in self._origins or origin in self._origins:
            return None
        if is_foreign(headers.get("Sec-Fetch-Site"), origin, host or ""):
            return PermissionDenied(
                f"pages of {(origin or 'other origins')[:80]} may not use this server; if they should, "
                "name their origin in T2I_CORS_ORIGINS"
            )
        return None


def is_known(authority: str, hosts: Collection[str]) -> bool:
    """Whether a `Host` header names one of `hosts`, this machine, or an address, which cannot be rebound."""
    host = _host_of(authority)
    if ANY in hosts or host in hosts or host.endswith(".localhost"):
        return True
    if any(known.startswith("*.") and host.endswith(known[1:]) for known in hosts):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _host_of(authority: str) -> str:
    try:
        return (urlsplit(f"//{authority}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def is_foreign(fetch_site: str | None, origin: str | None, authority: str) -> bool:
    """Whether a page sent this that came from another origin than `authority`; programs send neither header."""
    if fetch_site is not None:
        return fetch_site not in {"same-origin", "none"}
    if origin is None:
        return False
    scheme, _, own = origin.partition("://")
    # No browser writes the port that the scheme implies; programs may.
    implied = {"http": ":80", "https": ":443"}.get(scheme, "")
    return not own or own.lower() != authority.lower().removesuffix(implied)
