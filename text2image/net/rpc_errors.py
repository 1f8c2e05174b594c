"""Between our errors and gRPC statuses with google.rpc details, in both directions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from text2image.core import errors

ERROR_DOMAIN = "text2image"
# In an ErrorInfo's metadata, seconds: what a runner says of a refusal to its gateways.
_LASTS = "lasts"
_ANYTHING = "anything"

# All errors but `Unavailable`, which is known by its reasons; of those with one code the first is the plainest.
_KINDS: tuple[type[errors.Text2ImageError], ...] = (
    errors.InvalidRequest,
    errors.ContentBlocked,
    errors.Unauthenticated,
    errors.PermissionDenied,
    errors.ModelNotFound,
    errors.JobNotFound,
    errors.PayloadTooLarge,
    errors.UnsupportedMediaType,
    errors.QuotaExceeded,
    errors.Cancelled,
    errors.DeadlineExceeded,
    errors.RequestTimeout,
    errors.Internal,
)
# What blames the request, by whatever code, blames it for a client that knows no more than that too.
_BLAMING = ("ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED")
_KINDS_BY_CODE: dict[int, type[errors.Text2ImageError]] = {
    **{code_pb2.Code.Value(name): errors.InvalidRequest for name in _BLAMING},
    **{code_pb2.Code.Value(kind.grpc_code): kind for kind in reversed(_KINDS)},
}


def status_of(error: errors.Text2ImageError) -> grpc.Status:
    """The gRPC status of an error, its google.rpc details in the trailer `grpc-status-details-bin`."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)
    if isinstance(error, errors.Unavailable) and error.lasts:
        info.metadata[_LASTS] = f"{error.lasts:.3f}"
        if error.anything:
            info.metadata[_ANYTHING] = "true"
    details: list[Message] = [info]
    if isinstance(error, errors.InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    violation(field=v.field, description=v.reason) for v in error.violations
                ]
            )
        )
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, errors.QuotaExceeded):
        violation_ = error_details_pb2.QuotaFailure.Violation(
            subject=error.subject, description=error.message
        )
        details.append(error_details_pb2.QuotaFailure(violations=[violation_]))
    status = status_pb2.Status(code=code_pb2.Code.Value(error.grpc_code), message=error.message)
    for detail in details:
        status.details.add().Pack(detail)
    return rpc_status.to_status(status)


def error_from(call: grpc.RpcError | grpc.aio.AioRpcError) -> errors.Text2ImageError | None:
    """The error that a peer of ours sent, or None where the connection or a stranger failed the call."""
    try:
        status = rpc_status.from_call(cast(grpc.Call, call))
        details = _unpack(status.details) if status else {}
    except (ValueError, DecodeError):
        # The status and its details contradict each other, or are no such messages.
        return None
    info = details.get("ErrorInfo")
    if status is None or info is None or info.domain != ERROR_DOMAIN:
        return None
    retry = details.get("RetryInfo")
    retry_after = retry.retry_delay.ToMilliseconds() / 1000 if retry else None
    error = _rebuild(_kind_of(info.reason, status.code), status.message, retry_after, details)
    if error.reason != info.reason:
        error.reason = info.reason
    return error


def _unpack(packed: Sequence[Any]) -> dict[str, Any]:
    known = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.RetryInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.QuotaFailure,
    )
    found: dict[str, Any] = {}
    for kind in known:
        for detail in packed:
            if detail.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = message = kind()
                detail.Unpack(message)
    return found


def _kind_of(reason: str, code: int) -> type[errors.Text2ImageError]:
    """What an error is by its reason, or by its code if only later versions give that reason."""
    for kind in _KINDS:
        if kind.reason == reason:
            return kind
    return _KINDS_BY_CODE.get(code, errors.Unavailable)


def _rebuild(
    kind: type[errors.Text2ImageError],
    message: str,
    retry_after: float | None,
    details: Mapping[str, Any],
) -> errors.Text2ImageError:
    metadata = details["ErrorInfo"].metadata
    if kind is errors.InvalidRequest:
        found = details["BadRequest"].field_violations if "BadRequest" in details else ()
        violations = [errors.FieldViolation(v.field, v.description) for v in found]
        return errors.InvalidRequest(*violations or [errors.FieldViolation("request", message)])
    if kind is errors.QuotaExceeded:
        failure = details.get("QuotaFailure")
        subject = failure.violations[0].subject if failure and failure.violations else ""
        return errors.QuotaExceeded(message, retry_after=retry_after or 1.0, subject=subject)
    if kind is errors.Internal:
        return errors.Internal(message.split("quote id ")[-1].split(" ")[0])
    if kind is errors.Unavailable:
        return errors.Unavailable(
            message,
            reason=details["ErrorInfo"].reason,
            retry_after=retry_after or 1.0,
            lasts=_seconds_in(metadata.get(_LASTS, "")),
            anything=_ANYTHING in metadata,
        )
    return kind(message)


def _seconds_in(text: str) -> float:
    """What a later version may write otherwise counts as nothing."""
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
