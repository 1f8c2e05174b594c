"""Where the server under load is, and what it wants to be shown: HOST, PORT, GRPC_PORT, T2I_API_KEY, T2I_TLS_CA."""

from __future__ import annotations

import os
import ssl

from text2image.core.addresses import address_of, reachable
from text2image.core.settings import get_settings


def http_url() -> str:
    """The URL of HTTP; https where T2I_TLS_CA is set."""
    settings = get_settings()
    scheme = "https" if os.environ.get("T2I_TLS_CA") else "http"
    return f"{scheme}://{address_of(reachable(settings.host), settings.port)}"


def grpc_address() -> str:
    """Host and port of gRPC."""
    return get_settings().server_address


def is_local() -> bool:
    """Whether a server that is missing there could be started here."""
    return reachable(get_settings().host) in {"127.0.0.1", "localhost", "::1"}


def key_headers() -> dict[str, str]:
    """What shows the API key over HTTP, as the Python client shows it over gRPC."""
    key = os.environ.get("T2I_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def authorities() -> ssl.SSLContext | None:
    """Who may vouch for the server: a file's certificates, or everybody's by `system`; None for plain connections."""
    named = os.environ.get("T2I_TLS_CA")
    if not named:
        return None
    return ssl.create_default_context(cafile=None if named == "system" else named)
