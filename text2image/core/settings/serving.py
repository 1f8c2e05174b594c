"""Where the server listens, and whom it answers."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from text2image.core.settings.group import Group

_ORIGIN = re.compile(r"https?://[a-z0-9.:\[\]-]+")
_HOST = re.compile(r"\*|(\*\.)?[a-z0-9_.-]+", re.IGNORECASE)


class Serving(Group):
    """Addresses, TLS, the browsers and hosts that are answered, and the dialects."""

    host: str = Field(
        "127.0.0.1",
        validation_alias="HOST",
        description="Address that HTTP and gRPC listen on.",
    )
    port: int = Field(
        3000,
        ge=1,
        le=65535,
        validation_alias="PORT",
        description="Port of HTTP.",
    )
    grpc_port: int = Field(
        50051,
        ge=1,
        le=65535,
        validation_alias="GRPC_PORT",
        description="Port of gRPC.",
    )

    tls_cert: Path | None = Field(
        None,
        description="Certificate chain in PEM; with it and its key, HTTP and gRPC are served over TLS alone.",
    )
    tls_key: Path | None = Field(None, description="Key of the certificate, in PEM, not locked.")
    tls_client_ca: Path | None = Field(
        None,
        description="Authorities in PEM; clients must show a certificate that one of them has signed.",
    )
    cors_origins: str | None = Field(
        None,
        description="Origins whose pages may call HTTP from a browser, with commas between, or `*`; if unset none but "
        "the server's own.",
    )
    allowed_hosts: str | None = Field(
        None,
        description="Names that HTTP answers to beside `localhost`, `HOST` and all addresses, with commas between, as "
        "in `pictures.example,*.internal`, or `*`; if unset any, save on loopback without keys, TLS or proxies.",
    )
    a1111: bool = Field(
        True, description="Serve the API of A1111's web UI, `/sdapi/v1/`, beside the others."
    )

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str | None) -> str | None:
        # One that is written otherwise would never be equal to what a browser sends.
        for origin in (value or "*").split(","):
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; write it as in https://example.com:8443"
                )
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: str | None) -> str | None:
        for host in (value or "*").split(","):
            if not _HOST.fullmatch(host):
                raise ValueError(
                    f"{host!r} is no name of a host; write it as in pictures.example, without a port"
                )
        return value
