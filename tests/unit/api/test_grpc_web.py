"""Whatever a page sends is read as one message, or refused in words."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.web import framed
from text2image.api import grpc_web
from text2image.core.errors import InvalidRequest


@given(st.binary(max_size=200), st.booleans())
def test_a_message_is_read_as_it_was_framed(message: bytes, as_text: bool) -> None:
    body = framed(message)
    sent = base64.b64encode(body) if as_text else body
    assert grpc_web._message_in(sent, as_text=as_text) == message


@given(st.binary(min_size=1, max_size=200), st.integers(1, 200))
def test_base64_may_come_in_pieces(message: bytes, size: int) -> None:
    body = framed(message)
    pieces = [base64.b64encode(body[at : at + size]) for at in range(0, len(body), size)]
    assert grpc_web._message_in(b"".join(pieces), as_text=True) == message


@given(st.binary(max_size=200), st.booleans())
def test_anything_else_is_refused(body: bytes, as_text: bool) -> None:
    try:
        message = grpc_web._message_in(body, as_text=as_text)
    except (InvalidRequest, grpc_web._Aborted):
        return
    assert as_text or framed(message) == body


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2H", 7200),
        ("3M", 180),
        ("5S", 5),
        ("250m", 0.25),
        ("10u", 1e-5),
        ("99999999n", 0.099999999),
    ],
)
def test_deadlines_have_grpcs_units(text: str, seconds: float) -> None:
    assert grpc_web._timeout_in(text) == pytest.approx(seconds)


@given(st.text(max_size=12))
def test_a_deadline_that_is_none_is_refused(text: str) -> None:
    try:
        assert (grpc_web._timeout_in(text) or 0) >= 0
    except InvalidRequest:
        return


@given(st.text(max_size=60))
def test_a_message_of_the_trailers_is_one_line_of_ascii(details: str) -> None:
    frame = grpc_web._ending(grpc_web.grpc.StatusCode.INTERNAL, details, (("a-bin", b"\xff"),))
    lines = frame[5:].decode("ascii").split("\r\n")
    assert lines[0] == "grpc-status: 13"
    assert lines[-2:] == ["a-bin: /w", ""]
    assert len(lines) == 3 + bool(details)
