"""What people are told of failures: clients whose admitted pictures cannot be drawn, and whoever set up the model."""

from __future__ import annotations

import logging

from text2image.core.errors import DeadlineExceeded, Internal, Text2ImageError, Unavailable
from text2image.core.messages import Request
from text2image.engine.admission import MIN_RETRY_SECONDS
from text2image.engine.memory import MEMORY_RETRY_SECONDS
from text2image.engine.models.contract import OutOfMemory
from text2image.engine.sample import Generation

logger = logging.getLogger(__name__)


def outcome_of(error: Exception, request: Request) -> Text2ImageError:
    """For a sample that fails even when it stands alone."""
    if isinstance(error, OutOfMemory):
        size = f"{request.width}x{request.height}"
        return Unavailable(
            f"not enough device memory for a picture of {size}; try a smaller one, or later",
            reason=Unavailable.FULL,
            retry_after=MEMORY_RETRY_SECONDS,
        )
    return error if isinstance(error, Text2ImageError) else internal(error)


def internal(error: Exception) -> Internal:
    """An error without its cause, which stands in the log under the same id."""
    outcome = Internal()
    logger.error("internal error %s", outcome.error_id, exc_info=error)
    return outcome


def too_late(seconds: float) -> Unavailable:
    """For a request that comes up for rows so many seconds too late."""
    return Unavailable(
        "the server is full: the work ahead took longer than predicted, and the pictures "
        f"would be about {seconds:.1f} s late",
        reason=Unavailable.FULL,
        retry_after=max(MIN_RETRY_SECONDS, seconds),
    )


def unfinished(generation: Generation) -> DeadlineExceeded:
    """For a request whose deadline has passed, or that had to leave pictures out to keep it."""
    allowed = generation.deadline - generation.admitted_at
    missing, asked = generation.dropped + generation.pending, generation.request.n
    which = "not finished" if missing == asked else f"{missing} of {asked} pictures not finished"
    return DeadlineExceeded(f"{which} within {allowed:.1f} s")


def why_not_loaded(error: Exception) -> str:
    """Why a model does not load, in one line."""
    if isinstance(error, OutOfMemory):
        return (
            f"the device has too little free memory ({error}); free some, set T2I_DTYPE=float16 or "
            "a smaller T2I_MODEL, or T2I_DEVICE=cpu for the host's memory"
        )
    return " ".join(str(error).split()) or type(error).__name__
