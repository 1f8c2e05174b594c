"""TLS on both ports, and between gateways and runners: one check at the start, and what BentoML and grpc each want.

Both take TLS 1.2 and 1.3. A certificate that is renewed on disk is shown by gRPC from the next connection on; HTTP
reads it once, when its process starts.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from text2image.core.settings import Settings

logger = logging.getLogger(__name__)

# The settings of a certificate, its key, and the authorities of the other side.
_PUBLIC = ("T2I_TLS_CERT", "T2I_TLS_KEY", "T2I_TLS_CLIENT_CA")
_INTERNAL = ("T2I_RUNNER_TLS_CERT", "T2I_RUNNER_TLS_KEY", "T2I_RUNNER_TLS_CA")
# Of TLS 1.2 only what has forward secrecy and authenticated encryption; BentoML's default has neither.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class BadCertificate(Exception):
    """The files do not make a certificate to serve with; the text says which setting is wrong, and how."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What the server shows, and with `client_ca` the authorities whose certificates its clients must show.

    `variables` name the settings of the three, for people.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    variables: tuple[str, str, str] = _PUBLIC

    def check(self) -> None:
        """Does nothing if a server could start with these files.

        Raises:
            BadCertificate: it could not.
        """
        certificate, key, authorities = self.variables
        for variable, path in self._named():
            _require(variable, path, b"PRIVATE KEY" if variable == key else b"CERTIFICATE")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # An empty password, lest a locked key is asked for on the terminal.
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except ssl.SSLError as error:
            if "MISMATCH" in (error.reason or ""):
                why = f"is not the key of {certificate}={self.certificate}"
            else:
                why = (
                    f"cannot be used with {certificate}={self.certificate}: one of them is damaged, "
                    "or the key is locked with a password"
                )
            raise _bad(key, self.key, why) from None
        if self.client_ca:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError:
                raise _bad(authorities, self.client_ca, "is damaged") from None

    def http_options(self) -> dict[str, Any]:
        """The `ssl` of a BentoML service."""
        options = {
            "enabled": True,
            "certfile": str(self.certificate),
            "keyfile": str(self.key),
            "ciphers": _CIPHERS,
        }
        if self.client_ca:
            return {**options, "ca_certs": str(self.client_ca), "cert_reqs": int(ssl.CERT_REQUIRED)}
        return options

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """The credentials of a grpc server, which follow the files."""
        followed = _Followed(self)
        return grpc.dynamic_ssl_server_credentials(
            followed.configuration(),
            followed.renewed,  # type: ignore[arg-type] # may return None, as grpc's own words say
            require_client_authentication=self.client_ca is not None,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """The credentials of a grpc client that shows the same certificate, as the files are now."""
        return grpc.ssl_channel_credentials(
            self.client_ca.read_bytes() if self.client_ca else None,
            self.key.read_bytes(),
            self.certificate.read_bytes(),
        )

    def _named(self) -> list[tuple[str, Path]]:
        paths = (self.certificate, self.key, self.client_ca)
        return [(name, path) for name, path in zip(self.variables, paths, strict=True) if path]

    def stamp(self) -> tuple[tuple[int, ...], ...]:
        """Changes when a file is written or another takes its place.

        Raises:
            OSError: a file is not there.
        """
        stats = [path.stat() for _, path in self._named()]
        # The second time cannot be set back by whoever writes.
        return tuple(
            (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino) for stat in stats
        )


class _Followed:
    """Hands grpc the files anew when they have changed; what cannot be served with is left alone."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen = tls.stamp()
        self._told = ""

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        tls = self._tls
        return grpc.ssl_server_certificate_configuration(
            [(tls.key.read_bytes(), tls.certificate.read_bytes())],
            tls.client_ca.read_bytes() if tls.client_ca else None,
        )

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by grpc before each handshake; None leaves what there is."""
        try:
            stamp = self._tls.stamp()
            if stamp == self._seen:
                return None
            self._tls.check()
            configuration = self.configuration()
        except (OSError, BadCertificate) as error:
            # Tried again at the next handshake: what is wrong may pass, and leave the files as they are.
            if str(error) != self._told:
                self._told = str(error)
                logger.warning("the certificate was not renewed: %s", error)
            return None
        self._seen, self._told = stamp, ""
        logger.info("the certificate was renewed")
        return configuration


def tls_of(settings: Settings) -> Tls | None:
    """How the settings want connections to be secured, or None for plain ones.

    Raises:
        SystemExit: one setting stands without another that it needs; the text says which.
    """
    certificate, key = settings.tls_cert, settings.tls_key
    if certificate and key:
        return Tls(certificate, key, settings.tls_client_ca)
    if certificate or key or settings.tls_client_ca:
        raise SystemExit(
            "text2image: TLS needs both T2I_TLS_CERT and T2I_TLS_KEY; "
            "set the missing one, or none of the T2I_TLS_ settings"
        )
    return None


def runner_tls_of(settings: Settings) -> Tls | None:
    """How connections between gateways and runners on other machines are to be secured, or None for plain ones.

    Raises:
        SystemExit: one setting stands without another that it needs; the text says which.
    """
    files = (settings.runner_tls_cert, settings.runner_tls_key, settings.runner_tls_ca)
    certificate, key, authorities = files
    if certificate and key and authorities:
        return Tls(certificate, key, authorities, _INTERNAL)
    if any(files):
        raise SystemExit(
            f"text2image: TLS between gateways and runners needs {', '.join(_INTERNAL[:2])} and {_INTERNAL[2]}; "
            "set the missing ones, or none of them"
        )
    return None


def require_usable(tls: Tls | None) -> None:
    """Does nothing if a server could start.

    Raises:
        SystemExit: with one line that says which file is wrong, and how.
    """
    if tls:
        try:
            tls.check()
        except BadCertificate as error:
            raise SystemExit(f"text2image: cannot serve TLS: {error}") from None


def _require(variable: str, path: Path, kind: bytes) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _bad(variable, path, error.strerror or str(error)) from None
    if b"-----BEGIN " not in content or kind not in content:
        raise _bad(variable, path, f"holds no {kind.decode().lower()} in PEM")


def _bad(variable: str, path: Path, why: str) -> BadCertificate:
    return BadCertificate(f"{variable}={path}: {why}")
