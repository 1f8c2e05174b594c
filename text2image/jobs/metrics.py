"""What is measured of jobs."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter


class JobMetrics:
    """Counts items of jobs by how they ended. Make one a process."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._items = Counter(
            "text2image_job_items",
            "Items of jobs that have ended, by how: succeeded or failed.",
            ["state"],
            registry=registry,
        )
        for state in ("succeeded", "failed"):
            self._items.labels(state)

    def finished(self, state: str) -> None:
        self._items.labels(state).inc()
