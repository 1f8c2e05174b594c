"""Chains of certificates to sign pictures with, made anew each time, and pictures as C2PA's own reader finds them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
SIGNER = "Pictures of the tests"


@dataclass(frozen=True)
class Chain:
    """Files of a signer's certificate with its authority's behind it, and of its key; and that authority, in PEM."""

    certificate: Path
    key: Path
    authority: str

    def settings(self) -> dict[str, str]:
        return {"T2I_C2PA_CERT": str(self.certificate), "T2I_C2PA_KEY": str(self.key)}


def chain(
    folder: Path,
    key: Key | None = None,
    usage: ObjectIdentifier = ExtendedKeyUsageOID.EMAIL_PROTECTION,
    ends: timedelta = timedelta(days=365),
) -> Chain:
    """A chain that C2PA takes, save with another extended key usage or one that has ended.

    Args:
        ends: from now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = key or ec.generate_private_key(ec.SECP256R1())
    root = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("Authority of the tests", root, None, root, None, ends)
    signer = _certificate(SIGNER, own, authority, root, usage, ends)
    pem = serialization.Encoding.PEM
    made = Chain(folder / "chain.pem", folder / "signer.key", authority.public_bytes(pem).decode())
    made.certificate.write_bytes(signer.public_bytes(pem) + authority.public_bytes(pem))
    secret = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made.key.write_bytes(secret)
    return made


def _certificate(
    name: str,
    key: Key,
    authority: x509.Certificate | None,
    signed_by: ec.EllipticCurvePrivateKey,
    usage: ObjectIdentifier | None,
    ends: timedelta,
) -> x509.Certificate:
    own = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, name),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    now = datetime.now(UTC)
    signs = authority is None
    public = key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(own)
        .issuer_name(authority.subject if authority else own)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(signs, None), critical=True)
        .add_extension(
            x509.KeyUsage(not signs, False, False, False, False, signs, signs, False, False),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signed_by.public_key()),
            critical=False,
        )
    )
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(signed_by, hashes.SHA256())


def signed_as(file: bytes, authority: str) -> tuple[str | None, str, str]:
    """How far C2PA's reader trusts a picture, who signed it, and its digital source type."""
    trust = {"trust": {"trust_anchors": authority}, "verify": {"verify_trust": True}}
    # By its first byte, since one that was changed may not be opened by anybody else.
    kind = {b"\x89": "image/png", b"\xff": "image/jpeg", b"R": "image/webp"}[file[:1]]
    reader = c2pa.Reader(kind, io.BytesIO(file), context=c2pa.Context.from_dict(trust))
    manifest = reader.get_active_manifest()
    assert manifest
    (actions,) = manifest["assertions"]
    (action,) = actions["data"]["actions"]
    assert action["action"] == "c2pa.created"
    signer = manifest["signature_info"]["common_name"]
    return reader.get_validation_state(), signer, action["digitalSourceType"]
