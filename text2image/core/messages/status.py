"""What an engine is doing, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from text2image.core.messages.models import ModelStatus


class State(Enum):
    """What an engine is doing; only a READY one admits requests."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What an engine has done since its process began; one request asks for one or more samples."""

    admitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    batches: int = 0
    sample_steps: int = 0
    steps_saved: int = 0
    retries: int = 0
    dropped: int = 0
    out_of_memory: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An engine's state and load; `backlog_seconds` is the predicted time until all admitted work is done.

    `pace` is the seconds that a million pixel-steps add to it, 0 where that is not known. `models` are those of its
    catalogue, the default one first; earlier versions tell of none. `waiting` are those of the active samples that have
    not taken their first step. `utilization` is the backlog as a share of the longest that is admitted.
    """

    state: State
    detail: str = ""
    backlog_seconds: float = 0.0
    active: int = 0
    counters: Counters = field(default_factory=Counters)
    pace: float = 0.0
    models: tuple[ModelStatus, ...] = ()
    waiting: int = 0
    utilization: float = 0.0
