"""Proxies of the environment: gRPC takes `http_proxy` for everything, and few proxies pass it on.

What is on this machine is never reached through one, and where one is in the way the error says so.
"""

from __future__ import annotations

import os
import re

from text2image.core.addresses import is_loopback

# In the order in which grpc looks at them; it knows no capital ones.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_USER = re.compile(r"^(\w+://)?.*@")
_LOCAL_SCHEMES = ("unix:", "unix-abstract:", "vsock:")
_SCHEME = re.compile(r"^(dns|ipv4|ipv6|passthrough):(//[^/]*/)?")

DIRECT = ("grpc.enable_http_proxy", 0)


def channel_options(address: str) -> list[tuple[str, int]]:
    """Options of a channel to an address as grpc takes it, that keep what is local off every proxy."""
    return [DIRECT] if _is_local(address) else []


def proxy_hint(address: str) -> str:
    """What to add to the failure of a connection: that a proxy was in the way; empty where none was."""
    if _is_local(address):
        return ""
    host = _host_of(address)
    proxy = next((name for name in _PROXIES if os.environ.get(name)), None)
    excepted = next((os.environ[name] for name in _EXCEPTIONS if os.environ.get(name)), "")
    if proxy is None or any(
        host.endswith(name.strip()) for name in excepted.split(",") if name.strip()
    ):
        return ""
    shown = _USER.sub(r"\1***@", os.environ[proxy])
    return f" (through the proxy of {proxy}={shown}; to reach the server without it, set no_proxy={host})"


def _is_local(address: str) -> bool:
    return address.startswith(_LOCAL_SCHEMES) or is_loopback(_host_of(address))


def _host_of(address: str) -> str:
    """The host of an address as grpc takes it, without a scheme, brackets and port."""
    rest = _SCHEME.sub("", address)
    if rest.startswith("["):
        return rest[1:].partition("]")[0]
    return rest.partition(":")[0] if rest.count(":") == 1 else rest
