"""What a client shows a server, and whom it believes: the key, and certificates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import grpc

from text2image.net.wire import Metadata

Authorities: TypeAlias = str | Path | bytes | bool
Certificate: TypeAlias = tuple[str | Path, str | Path]


def key_metadata(api_key: str | None) -> Metadata:
    """The metadata that shows a key. What is wrong with one is told without it, unlike grpc would."""
    key = os.environ.get("T2I_API_KEY", "") if api_key is None else api_key
    if not key:
        return ()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError("an API key is printable ASCII without spaces")
    return (("authorization", f"Bearer {key}"),)


def tls_credentials(
    ca: Authorities | None, certificate: Certificate | None
) -> grpc.ChannelCredentials | None:
    """What TLS needs, or None for a plain connection."""
    plain = ca is False
    if ca is None:
        named = os.environ.get("T2I_TLS_CA", "")
        ca = True if named == "system" else named
    chain, key = certificate or _named_certificate()
    if not ca:
        # Whoever has a certificate expects TLS, and a plain connection would show the key to everybody on the way.
        if certificate or (chain and not plain):
            raise ValueError(
                "a client's certificate needs TLS: name who may vouch for the server too, "
                "by ca or T2I_TLS_CA (a file, or the authorities that everybody knows)"
            )
        return None
    return grpc.ssl_channel_credentials(
        None if ca is True else _pem(ca),
        private_key=_pem(key) if key else None,
        certificate_chain=_pem(chain) if chain else None,
    )


def _named_certificate() -> Certificate:
    return os.environ.get("T2I_TLS_CLIENT_CERT", ""), os.environ.get("T2I_TLS_CLIENT_KEY", "")


def _pem(source: str | Path | bytes) -> bytes:
    """Certificates or a key in PEM; grpc takes anything, and then never connects."""
    pem = source if isinstance(source, bytes) else Path(source).read_bytes()
    if b"-----BEGIN " not in pem:
        name = "it" if isinstance(source, bytes) else source
        raise ValueError(f"not PEM, where certificates or a key in PEM are needed: {name}")
    return pem
