"""Files say that a model drew them, and with a certificate who did; C2PA's own reader believes them, until changed."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import c2pa
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

from tests.provenance import SIGNER, Chain, Key, chain, signed_as
from tests.samples import MODEL, REQUEST
from text2image.core.formats import Encoding, FileFormat, Metadata
from text2image.core.init_image import InitImage
from text2image.core.messages import GeneratedImage, Pixels, Timings
from text2image.core.settings import Settings
from text2image.gateway import metadata
from text2image.gateway.encoding import convert
from text2image.gateway.provenance import Signer, SourceType, require_signer, source_of

DRAWN = GeneratedImage(0, 7, Pixels(8, 8, bytes(range(192))), Timings(0, 0, 0))
EDIT = replace(REQUEST, image=InitImage.of(1, 1, b"abc"))
each_form = pytest.mark.parametrize("form", FileFormat)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return chain(tmp_path_factory.mktemp("chain"))


def source_in(file: bytes) -> str:
    with Image.open(io.BytesIO(file)) as image:
        packet = image.getxmp()
    return str(packet["xmpmeta"]["RDF"]["Description"]["DigitalSourceType"]) if packet else ""


@each_form
def test_a_file_says_in_xmp_that_a_model_drew_it(form: FileFormat) -> None:
    for request, source in ((REQUEST, SourceType.MODEL), (EDIT, SourceType.COMPOSITE)):
        assert source_of(request) is source
        png = metadata.png_of(DRAWN, request, MODEL)
        assert source_in(convert(png, Encoding(form))) == source


@each_form
def test_what_files_tell_can_be_left_out(form: FileFormat) -> None:
    told = {}
    for level in Metadata:
        file = convert(metadata.png_of(DRAWN, REQUEST, MODEL, level), Encoding(form))
        told[level] = bool(metadata.read(file)), bool(source_in(file))
    assert told == {
        Metadata.FULL: (True, True),
        Metadata.SOURCE: (False, True),
        Metadata.NONE: (False, False),
    }


@each_form
def test_a_signature_covers_what_is_told_and_stands_in_no_readers_way(
    certified: Chain, form: FileFormat
) -> None:
    plain = metadata.png_of(DRAWN, REQUEST, MODEL)
    file = convert(plain, Encoding(form))
    signed = Signer(certified.certificate, certified.key).sign(file, form, SourceType.MODEL)
    assert signed_as(signed, certified.authority) == ("Trusted", SIGNER, SourceType.MODEL)
    assert metadata.read(signed) == metadata.read(plain)
    assert source_in(signed) == SourceType.MODEL
    with Image.open(io.BytesIO(file)) as one, Image.open(io.BytesIO(signed)) as other:
        assert one.tobytes() == other.tobytes()
    place = signed.index(b"trainedAlgorithmicMedia")
    changed = signed[:place] + b"X" + signed[place + 1 :]
    assert signed_as(changed, certified.authority)[0] == "Invalid"


def test_a_form_made_of_a_signed_picture_has_no_signature_until_it_gets_its_own(
    certified: Chain,
) -> None:
    signer = Signer(certified.certificate, certified.key)
    png = signer.sign(metadata.png_of(DRAWN, EDIT, MODEL), FileFormat.PNG, SourceType.COMPOSITE)
    file = convert(png, Encoding(FileFormat.JPEG))
    with pytest.raises(c2pa.C2paError):
        signed_as(file, certified.authority)
    again = signer.sign(file, FileFormat.JPEG, SourceType.COMPOSITE)
    assert signed_as(again, certified.authority) == ("Trusted", SIGNER, SourceType.COMPOSITE)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "P-521", "Ed25519", "RSA"],
)
def test_every_kind_of_key_that_c2pa_has_signs(tmp_path: Path, make: Callable[[], Key]) -> None:
    made = chain(tmp_path, make())
    png = metadata.png_of(DRAWN, REQUEST, MODEL)
    signed = Signer(made.certificate, made.key).sign(png, FileFormat.PNG, SourceType.MODEL)
    assert signed_as(signed, made.authority)[:2] == ("Trusted", SIGNER)


def told_of(certificate: Path | None, key: Path | None) -> str:
    with pytest.raises(SystemExit) as ended:
        require_signer(Settings(c2pa_cert=certificate, c2pa_key=key))
    text = str(ended.value)
    assert text.startswith("text2image: cannot sign pictures: ")
    assert len(text.splitlines()) == 1
    return text


def test_what_cannot_sign_is_told_in_one_line(certified: Chain, tmp_path: Path) -> None:
    require_signer(Settings())
    require_signer(Settings(c2pa_cert=certified.certificate, c2pa_key=certified.key))
    other = chain(tmp_path / "other")
    tls = chain(tmp_path / "tls", usage=ExtendedKeyUsageOID.SERVER_AUTH)
    weak = chain(tmp_path / "weak", rsa.generate_private_key(65537, 1024))
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nabc\n")
    certificate, key = certified.certificate, certified.key
    assert "needs both T2I_C2PA_CERT and T2I_C2PA_KEY" in told_of(certificate, None)
    assert "needs both" in told_of(None, key)
    missing = tmp_path / "none.pem"
    assert f"T2I_C2PA_CERT={missing}: No such file" in told_of(missing, key)
    assert "holds no certificate in PEM" in told_of(broken, key)
    assert "holds no certificate in PEM" in told_of(key, key)
    assert f"T2I_C2PA_KEY={broken}: holds no key" in told_of(certificate, broken)
    assert f"is not the key of T2I_C2PA_CERT={certificate}" in told_of(certificate, other.key)
    assert "emailProtection or documentSigning" in told_of(tls.certificate, tls.key)
    assert "RSA of 2048 bits" in told_of(weak.certificate, weak.key)
    ended = chain(tmp_path / "ended", ends=timedelta(days=-1))
    assert "not valid at time of signing" in told_of(ended.certificate, ended.key)


def test_a_certificate_that_ends_soon_is_warned_of(
    certified: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    require_signer(Settings(c2pa_cert=certified.certificate, c2pa_key=certified.key))
    assert not caplog.messages
    soon = chain(tmp_path, ends=timedelta(days=29))
    require_signer(Settings(c2pa_cert=soon.certificate, c2pa_key=soon.key))
    assert "ends on 2" in caplog.text


def test_any_number_of_threads_may_sign(certified: Chain) -> None:
    signer = Signer(certified.certificate, certified.key)
    png = metadata.png_of(DRAWN, REQUEST, MODEL)

    def sign(_: int) -> bytes:
        return signer.sign(png, FileFormat.PNG, SourceType.MODEL)

    with ThreadPoolExecutor(8) as threads:
        files = list(threads.map(sign, range(40)))
    assert {signed_as(file, certified.authority)[0] for file in files} == {"Trusted"}
