"""What the queries of jobs may say."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from text2image.jobs.reading import MAX_JOBS, MAX_PAGE
from text2image.jobs.records import ItemState


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")


class JobsQuery(_Query):
    """A page of jobs."""

    after: str = Field(
        "",
        description="`after` of the page before, or the id of a job.",
        pattern=r"^\w{0,100}$",
        examples=["job_5f0c1e2b9a7d4c3f8e6b0a1d"],
    )
    limit: int = Field(20, ge=1, le=MAX_JOBS, description="Jobs of a page.", examples=[20])
    kind: str = Field(
        "",
        description="Jobs of this kind alone.",
        pattern=r"^[a-z.]{0,40}$",
        examples=["native"],
    )


class StateQuery(_Query):
    """Requests in one state, or all."""

    state: ItemState | None = Field(
        None, description="Those in this state alone.", examples=["failed"]
    )


class ItemsQuery(StateQuery):
    """A page of requests."""

    after: int = Field(
        -1, ge=-1, le=1_000_000, description="`after` of the page before.", examples=[99]
    )
    limit: int = Field(100, ge=1, le=MAX_PAGE, description="Requests of a page.", examples=[100])
