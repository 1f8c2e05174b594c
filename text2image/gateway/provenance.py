"""Where pictures come from, in words for programs: IPTC's digital source type in XMP, and signed manifests of C2PA.

`Iptc4xmpExt:DigitalSourceType` is that of the IPTC Photo Metadata Standard; its values are those of
http://cv.iptc.org/newscodes/digitalsourcetype/. Manifests are those of the C2PA specification 2, made by c2pa-python.
A manifest holds a hash over the whole file, so it comes last: whatever changes the file afterwards breaks it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from text2image import __version__
from text2image.core.formats import FileFormat
from text2image.core.messages import Request
from text2image.core.settings import Settings

logger = logging.getLogger(__name__)

_CERTIFICATE, _KEY = "T2I_C2PA_CERT", "T2I_C2PA_KEY"
_NAME = "Text2Image"
# How long before its end a certificate is warned of.
_SOON = timedelta(days=30)
# Neither a smaller copy of the picture in its own file, nor each signature verified by the one who has just made it.
_SIGNING = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"verify_after_sign": False}}
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="{tool}"
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType="{source}"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


class SourceType(StrEnum):
    """How a picture came about, in IPTC's words."""

    MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    # What a model drew into or over a picture that somebody brought.
    COMPOSITE = (
        "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
    )


def source_of(request: Request) -> SourceType:
    """How the pictures of a request come about."""
    return SourceType.MODEL if request.image is None else SourceType.COMPOSITE


def xmp(source: SourceType) -> str:
    """The XMP packet that tells it."""
    return _XMP.format(tool=f"{_NAME} {__version__}", source=source)


class BadSigner(Exception):
    """The files are none to sign with; the text says which setting is wrong, and how."""


class Signer:
    """Signs pictures in the name of whoever has the certificate. Any number of threads may use it."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Reads the files.

        Raises:
            BadSigner: pictures cannot be signed with them.
        """
        # Here, since only a server that signs needs the package.
        import c2pa

        chain, secret = _read(_CERTIFICATE, certificate), _read(_KEY, key)
        algorithm, self.ends = _algorithm(certificate, chain, key, secret)
        self.fingerprint = hashlib.sha256(chain).hexdigest()
        self._builder = c2pa.Builder
        self._context = c2pa.Context.from_dict(_SIGNING)
        try:
            info = c2pa.C2paSignerInfo(algorithm, chain, secret, None)
            self._signer = c2pa.Signer.from_info(info)
            # It looks at the certificate when it signs for the first time.
            self.sign(_PIXEL, FileFormat.PNG, SourceType.MODEL)
        except c2pa.C2paError as error:
            why = (
                "C2PA takes no such certificate; it is signed by an authority, whose certificates follow it in the "
                f"file, for digitalSignature and emailProtection or documentSigning ({error})"
            )
            raise _bad(_CERTIFICATE, certificate, why) from None

    def sign(self, file: bytes, form: FileFormat, source: SourceType) -> bytes:
        """The file with a manifest that says who made it, with what, and how it came about."""
        tool = {"name": _NAME, "version": __version__}
        action = {"action": "c2pa.created", "digitalSourceType": source, "softwareAgent": tool}
        manifest = {
            "claim_generator_info": [tool],
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
        }
        signed = io.BytesIO()
        with self._builder(json.dumps(manifest), context=self._context) as builder:
            builder.sign(self._signer, form.media_type, io.BytesIO(file), signed)
        return signed.getvalue()


def signer_of(settings: Settings) -> Signer | None:
    """What the settings want pictures to be signed with, or None.

    Raises:
        BadSigner: pictures cannot be signed with it.
    """
    certificate, key = settings.c2pa_cert, settings.c2pa_key
    if certificate and key:
        signer = Signer(certificate, key)
        if signer.ends - datetime.now(UTC) < _SOON:
            logger.warning(
                "%s=%s ends on %s, and no picture is given out unsigned: start again with a renewed one before",
                _CERTIFICATE,
                certificate,
                f"{signer.ends:%Y-%m-%d %H:%M %Z}",
            )
        return signer
    if certificate or key:
        raise BadSigner(f"signing needs both {_CERTIFICATE} and {_KEY}; set the missing one too")
    return None


def require_signer(settings: Settings) -> None:
    """Does nothing if pictures can be signed as the settings want.

    Raises:
        SystemExit: with one line that says which file is wrong, and how.
    """
    try:
        signer_of(settings)
    except BadSigner as error:
        raise SystemExit(f"text2image: cannot sign pictures: {error}") from None


def _read(variable: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _bad(variable, path, error.strerror or str(error)) from None


def _algorithm(certificate: Path, chain: bytes, key: Path, secret: bytes) -> tuple[str, datetime]:
    """What C2PA calls signatures of a certificate's kind, and until when it is valid; its key is found to be that."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    try:
        signer = x509.load_pem_x509_certificates(chain)[0]
        own, ends = signer.public_key(), signer.not_valid_after_utc
    except (ValueError, IndexError):
        raise _bad(
            _CERTIFICATE, certificate, "holds no certificate in PEM, or a damaged one"
        ) from None
    try:
        loaded = serialization.load_pem_private_key(secret, None)
    except (ValueError, TypeError):
        why = "holds no key in PEM, a damaged one, or one that is locked with a password"
        raise _bad(_KEY, key, why) from None
    if loaded.public_key() != own:
        raise _bad(_KEY, key, f"is not the key of {_CERTIFICATE}={certificate}")
    match own:
        case ec.EllipticCurvePublicKey(key_size=(256 | 384 | 521) as size):
            return f"es{512 if size == 521 else size}", ends
        case ed25519.Ed25519PublicKey():
            return "ed25519", ends
        case rsa.RSAPublicKey(key_size=size) if size >= 2048:
            return "ps256", ends
    kinds = "EC (P-256, P-384, P-521), Ed25519 or RSA of 2048 bits or more"
    raise _bad(
        _CERTIFICATE, certificate, f"is of a kind that C2PA does not sign with; it takes {kinds}"
    )


def _bad(variable: str, path: Path, why: Any) -> BadSigner:
    return BadSigner(f"{variable}={path}: {why}")


# A file of one pixel.
_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c6360606000000004"
    "0001f61738550000000049454e44ae426082"
)
