"""What the description of the HTTP API says of jobs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from text2image.api import rest, schema
from text2image.api.jobs.requests import Submission
from text2image.api.jobs.results import JSONL
from text2image.core.errors import FieldViolation, InvalidRequest, JobNotFound, Unavailable

_ID = "job_5f0c1e2b9a7d4c3f8e6b0a1d"
JOB: dict[str, Any] = {
    "id": _ID,
    "name": "foxes",
    "kind": "native",
    "state": "running",
    "counts": {
        "total": 3,
        "queued": 1,
        "running": 1,
        "succeeded": 1,
        "failed": 0,
        "cancelled": 0,
    },
    "created_at": "2026-05-04T12:34:56.000Z",
    "started_at": "2026-05-04T12:34:56.250Z",
    "ended_at": None,
    "deadline_at": None,
    "predicted_end": "2026-05-04T12:35:01.000Z",
    "expires_at": None,
    "waiting_for": "",
    "warning": "",
    "bytes": 31250,
    "metadata": {"team": "posters"},
    "webhook": None,
}
_ITEM: dict[str, Any] = {
    "index": 0,
    "custom_id": "fox-1",
    "state": "succeeded",
    "request": {"text": "a red fox in the snow", "seed": 7},
    "pictures": [
        {
            "index": 0,
            "seed": 7,
            "width": 128,
            "height": 128,
            "media_type": "image/png",
            "bytes": 31250,
            "url": f"/v1/jobs/{_ID}/items/0/pictures/0",
            "file": "00000_0.png",
        }
    ],
    "error": None,
    "message": "Image generated successfully",
    "attempts": 1,
    "finished_at": "2026-05-04T12:34:58.000Z",
}
JOBS = {"jobs": [JOB], "after": None}
ITEMS = {"items": [_ITEM], "after": None}

_BAD = InvalidRequest(FieldViolation("limit", "must be between 1 and 100"))
_ABSENT = JobNotFound(f"you have no job {_ID!r}; it may have been removed")
_AWAY = Unavailable(
    "the jobs cannot be reached at the moment; nothing is lost",
    reason=Unavailable.STORAGE,
    retry_after=5,
)


def _path(name: str, example: Any, kind: str = "string") -> dict[str, Any]:
    limits: dict[str, Any] = {"minLength": 1} if kind == "string" else {"minimum": 0}
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": kind, **limits},
        "example": example,
    }


JOB_ID = _path("job_id", _ID)
INDEX, PICTURE = _path("index", 0, "integer"), _path("picture", 0, "integer")
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Of the client's choosing; a second submission with it gives the first one's job.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[A-Za-z0-9_-]+$"},
    "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
}
_REQUESTS = [{"text": "a red fox in the snow", "seed": 7, "custom_id": "fox-1"}]


def _submission() -> dict[str, Any]:
    body = schema.body_of(Submission, {"name": "foxes", "requests": _REQUESTS})
    lines = {
        "schema": {"type": "string", "description": "A request a line, other fields in the query."},
        "example": '{"text": "a red fox in the snow"}\n{"text": "a lighthouse", "seed": 7}\n',
    }
    form = {
        "schema": {
            "type": "object",
            "required": ["file"],
            "properties": {"file": {"type": "string", "format": "binary"}},
        },
        "example": {"file": "requests.jsonl"},
    }
    body["content"] |= {JSONL: lines, "multipart/form-data": form}
    return body


SUBMISSION = {"parameters": [_KEY], "requestBody": _submission()}


def parameters(query: type[BaseModel]) -> list[dict[str, Any]]:
    """The parameters of a query."""
    described = schema.body_of(query, {})["content"]["application/json"]["schema"]
    made = []
    for name, field in described["properties"].items():
        kinds = [kind for kind in field.pop("anyOf", ()) if kind.get("type") != "null"]
        shown = {**field, **(kinds[0] if kinds else {})}
        for left_out in ("default", "title"):
            shown.pop(left_out, None)
        words, (example,) = shown.pop("description"), shown.pop("examples")
        made.append(
            {
                "name": name,
                "in": "query",
                "description": words,
                "schema": shown,
                "example": example,
            }
        )
    return made


def told(description: str, example: dict[str, Any], *, bad: bool = False) -> schema.Responses:
    """The responses of a route that answers with JSON; `bad` if there is something to get wrong."""
    return {**schema.success(description, schema.json(example)), **_refusals(bad)}


def files(description: str, kind: str, *, bad: bool = False) -> schema.Responses:
    """The responses of a route that answers with a file."""
    return {**schema.success(description, schema.files([kind])), **_refusals(bad)}


def watched() -> schema.Responses:
    """The responses of a route that answers with events."""
    data = {"type": "string", "contentMediaType": "application/json"}
    fields = {"event": {"type": "string"}, "data": data}
    stream = {
        "text/event-stream": {
            "schema": {"type": "object", "required": [*fields], "properties": fields},
            "example": {"event": "job", "data": "the job as GET /v1/jobs/{job_id} tells of it"},
        }
    }
    return {**schema.success("What happens.", stream), **_refusals(bad=False)}


def created() -> schema.Responses:
    """The responses to a submission."""
    made = schema.success("The job.", schema.json(JOB))[200]
    place = {
        "description": "Where the job is.",
        "schema": {"type": "string"},
        "example": f"/v1/jobs/{_ID}",
    }
    errors = (*schema.DRAWING, _ABSENT)
    refused = schema.refusals(errors, rest.ErrorResponse, rest.error_body)
    refused.pop(504)
    return {201: {**made, "headers": {"Location": place}}, **refused}


def _refusals(bad: bool) -> schema.Responses:
    errors = (*((_BAD,) if bad else ()), *schema.DENIED, _ABSENT, _AWAY)
    return schema.refusals(errors, rest.ErrorResponse, rest.error_body)
