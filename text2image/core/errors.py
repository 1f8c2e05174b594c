"""The one taxonomy of errors: every error knows how each transport says it.

The engine and the gateway raise these; transports only translate. Messages are written for the person who reads the
answer: which value, which limit, what to do next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar
from uuid import uuid4


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One invalid field of a request and the reason, in words."""

    field: str
    reason: str


class Text2ImageError(Exception):
    """Base of all errors that reach a client.

    Attributes:
        http_status: status code of the HTTP answer, and of the in-band answer of the first gRPC contract.
        grpc_code: name of the `grpc.StatusCode`.
        openai_type: `error.type` in the OpenAI dialect.
        openai_code: `error.code` there; the reason in lower case if it is empty.
        reason: one word for programs, `ErrorInfo.reason` on gRPC.
        retry_after: seconds after which the same request could succeed, or None where waiting does not help.
    """

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"
    openai_type: ClassVar[str] = "server_error"
    openai_code: ClassVar[str] = ""
    reason: str = "INTERNAL"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


# More than the fields of a request, so that each of them can be named. Whoever sends unknown ones by the hundred
# needs no list of them, and gRPC drops an error that is longer than 16 KiB.
MAX_VIOLATIONS = 16
# Models that an error names.
MAX_NAMES = 32


class InvalidRequest(Text2ImageError):
    """The request itself is wrong; `violations` names each field that is, or the first and how many more there are."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"
    openai_type = "invalid_request_error"
    reason = "INVALID_REQUEST"

    def __init__(self, *violations: FieldViolation) -> None:
        if len(violations) > MAX_VIOLATIONS:
            named = violations[: MAX_VIOLATIONS - 1]
            more = FieldViolation("request", f"and {len(violations) - len(named)} more bad fields")
            violations = (*named, more)
        super().__init__("; ".join(f"{v.field}: {v.reason}" for v in violations))
        self.violations = violations

    def renamed(self, names: Mapping[str, str]) -> InvalidRequest:
        """The same error in the words of a contract whose fields are called otherwise.

        Where one field stands for several of ours, the reason begins with the one that is meant.
        """
        shared = {name for name, count in Counter(names.values()).items() if count > 1}

        def rename(violation: FieldViolation) -> FieldViolation:
            name = names.get(violation.field, violation.field)
            meant = f"{violation.field} " if name in shared and name != violation.field else ""
            return FieldViolation(name, meant + violation.reason)

        return InvalidRequest(*map(rename, self.violations))


class ContentBlocked(Text2ImageError):
    """The prompt, or a picture that was drawn for it, is one that this server does not give out."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"
    openai_type = "image_generation_user_error"
    openai_code = "moderation_blocked"
    reason = "CONTENT_BLOCKED"

    @classmethod
    def picture(cls) -> ContentBlocked:
        """For a picture, whoever looked at it."""
        return cls(
            "a picture that was drawn is blocked by this server's safety filter; change the prompt, or the seed"
        )


class Unauthenticated(Text2ImageError):
    """No API key, or one that is not known."""

    http_status = 401
    grpc_code = "UNAUTHENTICATED"
    openai_type = "authentication_error"
    reason = "UNAUTHENTICATED"


class PermissionDenied(Text2ImageError):
    """It is known who asks, by key, host or origin, and they may not do this."""

    http_status = 403
    grpc_code = "PERMISSION_DENIED"
    openai_type = "permission_error"
    reason = "PERMISSION_DENIED"


class ModelNotFound(Text2ImageError):
    """No model of this name is served."""

    http_status = 404
    grpc_code = "NOT_FOUND"
    openai_type = "invalid_request_error"
    reason = "MODEL_NOT_FOUND"

    @classmethod
    def of(cls, name: str, served: Iterable[str]) -> ModelNotFound:
        """For a name that is none of those that are served."""
        return cls(f"{name[:80]!r} is not served here; {served_names(served)}")


class JobNotFound(Text2ImageError):
    """The caller has no such job, or it has no such item or picture."""

    http_status = 404
    grpc_code = "NOT_FOUND"
    openai_type = "invalid_request_error"
    reason = "JOB_NOT_FOUND"


class FileNotFound(Text2ImageError):
    """The caller has no such file."""

    http_status = 404
    grpc_code = "NOT_FOUND"
    openai_type = "invalid_request_error"
    reason = "FILE_NOT_FOUND"


def served_names(names: Iterable[str]) -> str:
    """The models that are served, as the end of a sentence."""
    named = [repr(name) for name in names]
    shown = ", ".join(named[:MAX_NAMES]) or "no model"
    if len(named) > MAX_NAMES:
        return f"{shown} and {len(named) - MAX_NAMES} more are"
    return f"{shown} {'are' if len(named) > 1 else 'is'}"


class RequestTimeout(Text2ImageError):
    """The client did not finish its request in time."""

    http_status = 408
    grpc_code = "DEADLINE_EXCEEDED"
    openai_type = "timeout_error"
    reason = "REQUEST_TIMEOUT"


class PayloadTooLarge(Text2ImageError):
    """The body is larger than a request may be."""

    http_status = 413
    grpc_code = "INVALID_ARGUMENT"
    openai_type = "invalid_request_error"
    reason = "PAYLOAD_TOO_LARGE"


class UnsupportedMediaType(Text2ImageError):
    """The body is of a kind that is not read."""

    http_status = 415
    grpc_code = "INVALID_ARGUMENT"
    openai_type = "invalid_request_error"
    reason = "UNSUPPORTED_MEDIA_TYPE"


class QuotaExceeded(Text2ImageError):
    """The caller's own limit is reached; others are served. Always carries a retry delay.

    `subject` says whose limit it is: `key:` and its name, or `address:` and the address.
    """

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"
    openai_type = "rate_limit_error"
    reason = "QUOTA_EXCEEDED"

    def __init__(self, message: str, *, retry_after: float, subject: str = "") -> None:
        super().__init__(message, retry_after=retry_after)
        self.subject = subject


class Cancelled(Text2ImageError):
    """The client left before the answer."""

    http_status = 499
    grpc_code = "CANCELLED"
    openai_type = "request_cancelled"
    reason = "CANCELLED"


class Unavailable(Text2ImageError):
    """The server cannot take the request now: full, loading, draining, without a runner or out of reach of its storage.

    Always carries a retry delay; `reason` says which of these it is. `lasts` is for how many seconds from now whoever
    asks for the like of it need not be asked again: so long is the queue that it could be refused without loss. With
    `anything` the like of it is whatever the same caller asks for with the same patience.
    """

    http_status = 503
    grpc_code = "UNAVAILABLE"
    openai_type = "server_error"

    FULL: ClassVar[str] = "FULL"
    LOADING: ClassVar[str] = "LOADING"
    DRAINING: ClassVar[str] = "DRAINING"
    NO_RUNNER: ClassVar[str] = "NO_RUNNER"
    STORAGE: ClassVar[str] = "STORAGE"

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        retry_after: float,
        lasts: float = 0.0,
        anything: bool = False,
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.reason = reason
        self.lasts = lasts
        self.anything = anything


class DeadlineExceeded(Text2ImageError):
    """The deadline passed before the pictures were finished."""

    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"
    openai_type = "timeout_error"
    reason = "DEADLINE_EXCEEDED"


class Internal(Text2ImageError):
    """Our fault. The message holds an id that stands in the log too, and nothing of the cause."""

    def __init__(self, error_id: str | None = None) -> None:
        self.error_id = error_id or uuid4().hex[:12]
        super().__init__(f"internal error; quote id {self.error_id} when you report it")
