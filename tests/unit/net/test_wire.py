"""What crosses the wire arrives as it was: requests, events, status, models, and errors with all they say."""

from __future__ import annotations

from dataclasses import fields, replace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.init_images import init_image
from tests.samples import MODEL, REQUEST, params_of, requests
from text2image.core import errors
from text2image.core.init_image import InitImage
from text2image.core.messages import (
    Completed,
    Control,
    Counters,
    Embedding,
    Event,
    GeneratedImage,
    Input,
    Loading,
    ModelState,
    ModelStatus,
    Picture,
    Pixels,
    Progress,
    PromptSyntax,
    Queued,
    Request,
    RequestParams,
    State,
    Status,
    StreamOptions,
    Timings,
)
from text2image.net import rpc, rpc_errors, text2image_pb2, wire
from text2image.v1 import image_generation_pb2 as pb

seconds = st.floats(0, 1e6)
counts = st.integers(0, 2**31 - 1)
timings = st.builds(Timings, seconds, seconds, seconds, seconds)
pixels = st.builds(Pixels, counts, counts, st.binary(max_size=9))
text = st.text(st.characters(exclude_categories=["Cs"]))
plain_events = (
    st.builds(Queued, seconds)
    | st.builds(Loading, text, st.none() | seconds)
    | st.builds(Progress, counts, counts, counts, st.none() | pixels)
    | st.builds(Completed, text, text)
)
images = st.builds(GeneratedImage, counts, st.integers(0, 2**63 - 1), pixels, timings)
pictures = st.builds(
    Picture,
    index=counts,
    seed=st.integers(0, 2**63 - 1),
    width=counts,
    height=counts,
    png=st.binary(max_size=9),
    path=text,
    timings=timings,
)


@given(requests, st.builds(StreamOptions, counts, counts))
def test_a_request_arrives_complete(request: Request, options: StreamOptions) -> None:
    sent = wire.request_to(request, options).SerializeToString()
    message = pb.GenerateRequest.FromString(sent)
    assert wire.params_from(message) == params_of(request)
    assert wire.options_from(message) == options


@pytest.mark.parametrize("masked", [False, True])
def test_a_picture_to_begin_from_arrives_as_pixels(masked: bool) -> None:
    image = init_image(masked=masked)
    request = replace(REQUEST, image=image, strength=0.6)
    message = wire.request_to(request, StreamOptions())
    params = wire.sent_params_from(pb.GenerateRequest.FromString(message.SerializeToString()))
    assert params == params_of(request)
    assert isinstance(params.image, InitImage)
    assert (params.image.rgb, params.image.mask) == (image.rgb, image.mask)


@pytest.mark.parametrize("masked", [False, True])
def test_a_picture_that_steers_arrives_as_pixels(masked: bool) -> None:
    shown = init_image((REQUEST.width, REQUEST.height), masked=masked)
    control = Control("edges", shown, 0.4, 0.1, 0.9, "inpaint" if masked else "", "0123456789")
    request = replace(REQUEST, controls=(control, replace(control, scale=1.0)))
    message = wire.request_to(request, StreamOptions())
    params = wire.sent_params_from(pb.GenerateRequest.FromString(message.SerializeToString()))
    assert params == params_of(request)
    assert params.controls
    for each in params.controls:
        assert isinstance(each.image, InitImage)
        assert (each.image.rgb, each.image.mask) == (shown.rgb, shown.mask)
    message.controls[1].image = message.controls[1].image[:-1]
    with pytest.raises(errors.InvalidRequest, match="is for a runner to be pixels: image has"):
        wire.sent_params_from(message)


def test_what_a_client_leaves_out_of_a_control_is_the_whole_of_it() -> None:
    message = pb.GenerateRequest(controls=[pb.Control(name="edges")])
    assert wire.params_from(message).controls == (Control("edges"),)


@pytest.mark.parametrize("field", ["image", "mask"])
def test_a_runner_is_sent_all_pixels_and_no_more(field: str) -> None:
    message = wire.request_to(
        replace(REQUEST, image=init_image(masked=True), strength=0.6), StreamOptions()
    )
    setattr(message, field, getattr(message, field)[:-1])
    with pytest.raises(errors.InvalidRequest, match=f"is for a runner to be pixels: {field} has"):
        wire.sent_params_from(message)


def test_what_a_client_leaves_out_stays_open() -> None:
    message = pb.GenerateRequest(prompt="a cat", steps=0)
    assert wire.params_from(message) == RequestParams(prompt="a cat", steps=0)
    assert wire.options_from(message) == StreamOptions(progress_every=1, preview_every=0)
    assert wire.options_from(pb.GenerateRequest(progress_every=-3)) == StreamOptions()


@given(plain_events | images)
def test_a_runners_event_arrives(event: Event) -> None:
    sent = wire.event_to(event).SerializeToString()
    assert wire.event_from(pb.GenerateResponse.FromString(sent)) == event


@given(plain_events | pictures)
def test_a_gateways_event_arrives(event: Queued | Progress | Picture | Completed) -> None:
    sent = wire.client_event_to(event).SerializeToString()
    assert wire.client_event_from(pb.GenerateResponse.FromString(sent)) == event


def test_an_event_of_a_later_version_is_passed_over() -> None:
    assert wire.event_from(pb.GenerateResponse()) is None
    assert wire.client_event_from(pb.GenerateResponse()) is None


@given(
    st.builds(
        Status,
        state=st.sampled_from(State),
        detail=text,
        backlog_seconds=seconds,
        active=counts,
        counters=st.builds(Counters, **{field.name: counts for field in fields(Counters)}),
        models=st.lists(
            st.builds(
                ModelStatus,
                name=text,
                revision=text,
                state=st.sampled_from(ModelState),
                detail=text,
                seconds=st.none() | seconds,
            ),
            max_size=2,
        ).map(tuple),
    )
)
def test_a_status_arrives(status: Status) -> None:
    sent = wire.status_to(status).SerializeToString()
    assert wire.status_from(pb.WatchStatusResponse.FromString(sent)) == status


def test_a_model_arrives() -> None:
    quantized = replace(MODEL, side_multiple=16, quantization="nf4", tiled_above=512 * 512)
    words = {
        "embeddings": (Embedding("film", "0123456789ab", 2),),
        "clip_skip": 2,
        "max_clip_skip": 12,
        "prompt_syntax": PromptSyntax.A1111,
    }
    for model in (
        MODEL,
        replace(MODEL, side_multiple=16, inputs=tuple(Input)),
        replace(MODEL, **words),
        quantized,
    ):  # type: ignore[arg-type]
        sent = wire.model_to(model).SerializeToString()
        assert wire.model_from(pb.GetModelResponse.FromString(sent)) == model


def test_a_runner_that_does_not_tell_of_sides_draws_multiples_of_8() -> None:
    message = wire.model_to(MODEL)
    message.ClearField("side_multiple")
    assert wire.model_from(message).side_multiple == 8


class Failed(grpc.RpcError):
    """A call that ended in a status, as a client sees it."""

    def __init__(self, status: grpc.Status) -> None:
        super().__init__()
        self._status = status

    def code(self) -> grpc.StatusCode:
        return self._status.code

    def details(self) -> str:
        return self._status.details

    def trailing_metadata(self) -> object:
        return self._status.trailing_metadata


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest(
            errors.FieldViolation("steps", "is 0"), errors.FieldViolation("n", "is 9")
        ),
        errors.Unauthenticated("no key"),
        errors.PermissionDenied("not yours"),
        errors.PayloadTooLarge("too large"),
        errors.QuotaExceeded("slow down", retry_after=2.5, subject="key:alice"),
        errors.Cancelled("gone"),
        errors.Unavailable("full", reason=errors.Unavailable.FULL, retry_after=0.25),
        errors.Unavailable("full", reason=errors.Unavailable.FULL, retry_after=1, lasts=0.5),
        errors.Unavailable(
            "full", reason=errors.Unavailable.FULL, retry_after=1, lasts=0.5, anything=True
        ),
        errors.Unavailable("bye", reason=errors.Unavailable.DRAINING, retry_after=10),
        errors.DeadlineExceeded("too late"),
        errors.Internal("abc123"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_with_all_it_says(error: errors.Text2ImageError) -> None:
    arrived = rpc_errors.error_from(Failed(rpc_errors.status_of(error)))
    assert type(arrived) is type(error)
    assert arrived.__dict__ == error.__dict__
    assert str(arrived) == str(error)


def test_an_error_of_many_violations_fits_into_grpcs_metadata() -> None:
    """grpc drops what is larger, and its client sees RESOURCE_EXHAUSTED."""
    violations = [errors.FieldViolation(f"#{number}", "x" * 80) for number in range(500)]
    error = errors.InvalidRequest(*violations)
    status = rpc_errors.status_of(error)
    metadata = sum(len(value) for _, value in status.trailing_metadata) + len(status.details)
    assert metadata < 8 << 10
    arrived = rpc_errors.error_from(Failed(status))
    assert isinstance(arrived, errors.InvalidRequest)
    assert arrived.violations == error.violations
    assert arrived.violations[:15] == tuple(violations[:15])
    assert arrived.violations[-1].reason == "and 485 more bad fields"
    assert error.renamed({}).violations == error.violations


def test_a_strangers_error_is_not_taken_for_ours() -> None:
    refused = errors.Unavailable("full", reason=errors.Unavailable.FULL, retry_after=1)
    bare = rpc_errors.status_of(refused)._replace(trailing_metadata=())
    assert rpc_errors.error_from(Failed(bare)) is None


LIMIT = 100


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\x12\x03cat", None),
        (b"\xff", errors.InvalidRequest),
        (b"\x12\x02\xff\xfe", errors.InvalidRequest),
        (b"\x12\x03cat\xa0\x06\x01", errors.InvalidRequest),
        (b"\x12\x7f" + b"x" * 127, errors.PayloadTooLarge),
    ],
    ids=["valid", "garbage", "invalid UTF-8", "unknown field", "too large"],
)
def test_what_does_not_parse_reaches_the_handler(
    data: bytes, error: type[errors.Text2ImageError] | None
) -> None:
    parsed = rpc.deserializer(text2image_pb2.ImageRequest, LIMIT)(data)
    if error is None:
        assert rpc.checked(parsed).text == "cat"
    else:
        with pytest.raises(error):
            rpc.checked(parsed)


def test_only_pictures_may_be_larger_than_the_rest() -> None:
    parse = rpc.deserializer(pb.GenerateRequest, LIMIT, picture_bytes=LIMIT)
    for sent, fits in (
        ({"image": b"x" * LIMIT}, True),
        ({"image": b"x" * 60, "mask": b"x" * 60}, True),
        ({"image": b"x" * 60, "negative_prompt": "x" * 110}, False),
        ({"prompt": "x" * 120}, False),
        ({"image": b"x" * 201}, False),
    ):
        data = pb.GenerateRequest(**sent).SerializeToString()  # type: ignore[arg-type]
        assert isinstance(parse(data), pb.GenerateRequest) == fits


def test_an_unforeseen_error_tells_an_id_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    internal = rpc.as_ours(RuntimeError("the password is 1234"))
    assert isinstance(internal, errors.Internal)
    assert "1234" not in internal.message
    assert internal.error_id in internal.message
    assert internal.error_id in caplog.text
