"""What is submitted as a job, and how each request of it is checked before the job is taken in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from text2image.api import rest
from text2image.api.asgi import invalid
from text2image.core.errors import (
    FieldViolation,
    InvalidRequest,
    ModelNotFound,
    PayloadTooLarge,
)
from text2image.core.messages import RequestParams
from text2image.core.settings import get_settings
from text2image.gateway import init_images
from text2image.gateway.generate import Gateway
from text2image.jobs.jobs import MAX_ITEMS
from text2image.jobs.records import NewItem

MAX_NAME, MAX_ID = 200, 200
MAX_PAIRS, MAX_PAIR_KEY, MAX_PAIR_VALUE = 16, 64, 512
MAX_KEY = 255
# A quoted string of structured headers (RFC 9651), or the same without quotes, as many clients write it.
_KEY = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"|([\x21\x23-\x7e]+)')
_PairKey = Annotated[str, Field(max_length=MAX_PAIR_KEY)]
_PairValue = Annotated[str, Field(max_length=MAX_PAIR_VALUE)]


class JobRequest(rest.GenerateRequest):
    """One request of a job: what POST /generate takes, and what the client calls it."""

    custom_id: str | None = Field(
        None,
        description="Comes back with the result; need not be unique.",
        json_schema_extra={"maxLength": MAX_ID},
    )
    images_only: bool | None = Field(None, description="Means nothing here.")


class Envelope(BaseModel):
    """A job beside its requests."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str | None = Field(None, max_length=MAX_NAME, description="For people.")
    webhook_url: str | None = Field(
        None,
        description="URL that is told of the job's end, by the Standard Webhooks scheme.",
        examples=["https://example.com/hooks"],
    )
    metadata: dict[_PairKey, _PairValue] | None = Field(
        None,
        max_length=MAX_PAIRS,
        description=f"The client's own notes: at most {MAX_PAIRS} pairs, of {MAX_PAIR_KEY} and {MAX_PAIR_VALUE} "
        "characters.",
    )
    paused: bool | None = Field(None, description="Whether it waits for `resume`.")
    timeout: float | None = Field(
        None,
        gt=0,
        le=366 * 24 * 3600,
        description="Seconds after which what is not drawn fails; never if left out.",
    )


class Submission(Envelope):
    """A job."""

    requests: list[JobRequest] = Field(
        description="What to draw, in this order.", min_length=1, max_length=MAX_ITEMS
    )


class Loose(Envelope):
    """The same before each of its requests is read."""

    requests: list[dict[str, Any]]


def envelope_in(query: Mapping[str, str]) -> Envelope:
    """What the query of an upload, or a form, says of the job.

    Raises:
        InvalidRequest: names what is wrong.
    """
    found: dict[str, Any] = dict(query)
    if "metadata" in found:
        try:
            found["metadata"] = json.loads(found["metadata"])
        except (ValueError, RecursionError):
            raise refused("metadata", 'must be JSON, as in {"team": "posters"}') from None
    try:
        return Envelope.model_validate(found, strict=False)
    except pydantic.ValidationError as error:
        raise invalid(error) from None


def check_envelope(envelope: Envelope, check_webhook: Callable[[str], str]) -> None:
    """Does nothing if what a job says of itself can be done.

    Raises:
        InvalidRequest: it cannot.
    """
    for key, value in (envelope.metadata or {}).items():
        # What not every database can keep.
        if "\0" in key + value:
            raise refused("metadata", "holds a character U+0000")
    if not (envelope.name or "").isprintable():
        raise refused("name", "holds control characters")
    if envelope.webhook_url is not None and (fault := check_webhook(envelope.webhook_url)):
        raise refused("webhook_url", fault)


def key_in(header: str | None) -> str:
    """The key of an `Idempotency-Key` header; empty if there is none.

    Raises:
        InvalidRequest: it is none.
    """
    if header is None:
        return ""
    found = _KEY.fullmatch(header.strip())
    key = (re.sub(r"\\(.)", r"\1", found[1]) if found[1] is not None else found[2]) if found else ""
    if not key or len(key) > MAX_KEY:
        reason = f'must be 1 to {MAX_KEY} visible characters in quotes, as in "8e03978e-40d5"'
        raise refused("Idempotency-Key", reason)
    return key


@dataclass(frozen=True, slots=True)
class Checker:
    """Makes items of requests, each checked against its model's limits: in a thread, since pictures are read for it."""

    gateway: Gateway

    def item(self, place: str, fields: dict[str, Any]) -> NewItem | InvalidRequest:
        """One request, or what is wrong with it, whose fields are named after its place."""
        try:
            request = JobRequest.model_validate(fields)
            params = request.params()
            self.check(params)
        except pydantic.ValidationError as error:
            return _placed(place, invalid(error))
        except InvalidRequest as error:
            return _placed(place, error.renamed(rest.NAMES))
        except (ModelNotFound, PayloadTooLarge) as error:
            field = "model" if isinstance(error, ModelNotFound) else "image"
            return _placed(place, refused(field, error.message))
        if request.custom_id and (len(request.custom_id) > MAX_ID or "\0" in request.custom_id):
            return _placed(place, refused("custom_id", f"must be at most {MAX_ID} characters"))
        # What a database cannot keep as text.
        title = f"{request.context or ''} {request.text}".replace("\0", " ")
        return NewItem(params=params, custom_id=request.custom_id or "", title=title)

    def check(self, params: RequestParams) -> None:
        """Does nothing if the server can draw this. Its pictures are read for that, so call it in a thread.

        Raises:
            Text2ImageError: it cannot.
        """
        model = self.gateway.runners.named(params.model)
        limits = init_images.Limits.of(get_settings())
        self.gateway.resolve(init_images.read(params, model, limits), model)


def _placed(place: str, error: InvalidRequest) -> InvalidRequest:
    return InvalidRequest(
        *(FieldViolation(f"{place}.{each.field}"[:120], each.reason) for each in error.violations)
    )


def all_of(errors: Iterable[InvalidRequest]) -> InvalidRequest:
    """One error that names what several do."""
    return InvalidRequest(*(violation for error in errors for violation in error.violations))


def refused(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest(FieldViolation(field, reason))
