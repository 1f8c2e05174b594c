"""What clients of OpenAI's files and batches send, and what they are told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from text2image.api import fields

WINDOW = "24h"
WINDOW_SECONDS = 24 * 3600
PURPOSE, OUTPUT_PURPOSE = "batch", "batch_output"
# OpenAI's own limits.
MAX_METADATA = 16
SHORTEST_LIFE, LONGEST_LIFE = 3600, 30 * 24 * 3600
MAX_FILES_PAGE, MAX_BATCHES_PAGE, BATCHES_PAGE = 10_000, 100, 20

Key = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]


class ExpiresAfter(BaseModel):
    """How long files are kept."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: fields.Integer = Field(ge=SHORTEST_LIFE, le=LONGEST_LIFE)


class CreateBatchRequest(BaseModel):
    """OpenAI's CreateBatchRequest."""

    model_config = ConfigDict(strict=True, extra="forbid")

    input_file_id: str = Field(description="A file that was uploaded with the purpose `batch`.")
    endpoint: Literal["/v1/images/generations", "/v1/images/edits"] = Field(
        description="What each line asks for."
    )
    completion_window: Literal["24h"] = Field(description="What is not drawn by then expires.")
    metadata: dict[Key, Value] | None = Field(
        None, description="The client's own notes.", max_length=MAX_METADATA
    )
    output_expires_after: ExpiresAfter | None = Field(
        None, description="Ignored; the files are kept as long as the batch is."
    )


class FileObject(BaseModel):
    """OpenAI's OpenAIFile."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Seconds since 1970.")
    expires_at: int | None = Field(None, description="When it is removed, if that is known.")
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(BaseModel):
    """Files, newest first unless the other order is asked for."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class FileDeleted(BaseModel):
    """What is told of a file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchError(BaseModel):
    """Why a batch could not be begun; `line` counts from 1."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(BaseModel):
    """All that is wrong with an input file, or the first of it."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    """Lines of a batch by how they ended."""

    total: int
    completed: int
    failed: int


class Batch(BaseModel):
    """OpenAI's Batch. Times are seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str = WINDOW
    status: Literal[
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    ]
    output_file_id: str | None = Field(
        None, description="The answers to lines that were drawn, once it has ended."
    )
    error_file_id: str | None = Field(None, description="What went wrong with the others.")
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None


class BatchList(BaseModel):
    """Batches, newest first."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class Line(BaseModel):
    """One line of an input file, as far as every endpoint has it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    # PostgreSQL keeps no NUL.
    custom_id: str = Field(min_length=1, max_length=512, pattern=r"^[^\x00]*$")
    method: Literal["POST"]
    url: str
    body: dict[str, Any]
