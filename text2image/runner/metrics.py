"""What a runner tells Prometheus. The gateway's /metrics shows it too: both write to one multi-process folder."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from text2image.engine.loop import Observer
from text2image.messages import Status, Timings

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_STAGE_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class RunnerMetrics(Observer):
    """Metrics of one engine. Make it once in a process, after PROMETHEUS_MULTIPROC_DIR is set."""

    def __init__(self) -> None:
        self._batch_rows = Histogram(
            "text2image_batch_rows", "Rows in a U-Net forward pass", buckets=_ROWS
        )
        self._step_seconds = Histogram(
            "text2image_step_seconds", "Time of one step of a batch", buckets=_SECONDS
        )
        self._decode_seconds = Histogram(
            "text2image_decode_seconds", "Time to decode one chunk of pictures", buckets=_SECONDS
        )
        self._stage_seconds = Histogram(
            "text2image_stage_seconds",
            "Where a picture's time goes, by stage",
            ["stage"],
            buckets=_STAGE_SECONDS,
        )
        self._backlog_seconds = Gauge(
            "text2image_backlog_seconds",
            "Predicted seconds until all admitted work is done",
            multiprocess_mode="livesum",
        )
        self._active = Gauge(
            "text2image_active_samples",
            "Pictures in flight or waiting",
            multiprocess_mode="livesum",
        )
        self._totals = {
            name: Counter(f"text2image_engine_{name}", help_text)
            for name, help_text in {
                "admitted": "Requests admitted",
                "completed": "Requests that ended in pictures",
                "failed": "Requests that ended in an error",
                "cancelled": "Requests whose client left or whose deadline passed",
                "refused": "Requests refused at admission",
                "batches": "U-Net forward passes",
                "sample_steps": "Steps taken, summed over pictures",
                "steps_saved": "Steps that cancelled pictures had left",
                "retries": "Batches tried again in halves",
                "dropped": "Admitted requests ended before their first step, as they would have been late",
            }.items()
        }
        self._seen = dict.fromkeys(self._totals, 0)

    def stepped(self, samples: int, rows: int, seconds: float) -> None:
        self._batch_rows.observe(rows)
        self._step_seconds.observe(seconds)

    def decoded(self, samples: int, seconds: float) -> None:
        self._decode_seconds.observe(seconds)

    def finished(self, timings: Timings) -> None:
        for stage in ("queued", "denoising", "decoding"):
            self._stage_seconds.labels(stage).observe(getattr(timings, stage))

    def update(self, status: Status) -> None:
        """Takes over an engine's status; its counters become increments of ours."""
        self._backlog_seconds.set(status.backlog_seconds)
        self._active.set(status.active)
        for name, counter in self._totals.items():
            value = getattr(status.counters, name)
            counter.inc(value - self._seen[name])
            self._seen[name] = value
