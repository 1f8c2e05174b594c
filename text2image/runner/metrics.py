"""What a runner tells Prometheus. The gateway's /metrics shows it too: both write to one multi-process folder."""

from __future__ import annotations

from dataclasses import fields

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from text2image.core.messages import Counters, ModelInfo, ModelState, State, Status, Timings
from text2image.engine.memory import MemoryReading
from text2image.engine.reports import Observer
from text2image.observe.metrics import stage_seconds, started

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_COUNTERS = {
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
    "out_of_memory": "Batches for which the device had no room",
}


class RunnerMetrics(Observer):
    """Metrics of one engine. Make it once in a process, after PROMETHEUS_MULTIPROC_DIR is set."""

    def __init__(self, runner: int, registry: CollectorRegistry = REGISTRY) -> None:
        """`runner` is the number that tells this one from others of the same server."""
        self._runner = str(runner)
        self._registry = registry
        self._stage_seconds = stage_seconds(registry)
        self._measure_steps()
        self._measure_load()
        self._totals = {
            name: Counter(f"text2image_engine_{name}", help_text, registry=registry)
            for name, help_text in _COUNTERS.items()
        }
        self._seen = Counters()
        # Of models, those that have gone included.
        self._names: set[str] = set()
        started("runner", registry)

    def _measure_steps(self) -> None:
        registry = self._registry
        self._batch_rows = Histogram(
            "text2image_batch_rows",
            "Rows in a U-Net forward pass",
            buckets=_ROWS,
            registry=registry,
        )
        self._batch_occupancy = Histogram(
            "text2image_batch_occupancy",
            "Rows in a U-Net forward pass, as a share of those that a full one has",
            buckets=_SHARES,
            registry=registry,
        )
        self._step_seconds = Histogram(
            "text2image_step_seconds",
            "Time of one step of a batch",
            buckets=_SECONDS,
            registry=registry,
        )
        self._decode_seconds = Histogram(
            "text2image_decode_seconds",
            "Time to decode one chunk of pictures",
            buckets=_SECONDS,
            registry=registry,
        )

    def _measure_load(self) -> None:
        def gauge(name: str, told: str, mode: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(
                f"text2image_{name}",
                told,
                labels,
                multiprocess_mode=mode,  # type: ignore[arg-type] # one of its literals
                registry=self._registry,
            )

        own = ("runner",)
        self._backlog_seconds = gauge(
            "backlog_seconds", "Predicted seconds until all admitted work is done", "livesum"
        )
        self._active = gauge("active_samples", "Pictures in flight or waiting", "livesum")
        self._waiting = gauge(
            "waiting_samples", "Pictures that have not taken their first step", "livesum"
        )
        self._memory_free = gauge(
            "device_memory_free_bytes",
            "Bytes that steps may take, of the card or on a CPU of the container or machine, as read last",
            "livemax",
            own,
        )
        self._memory_used = gauge(
            "device_memory_used_bytes",
            "Bytes of the same that this runner holds, as read last",
            "livemax",
            own,
        )
        self._state = gauge(
            "runner_state", "1 for the state that a runner is in", "livemax", (*own, "state")
        )
        self._model_info = gauge(
            "model_info",
            "1 for the default model",
            "livemax",
            ("model", "revision", "device", "dtype"),
        )

        self._model_loaded = gauge(
            "model_loaded",
            "1 for a model that is loaded, 0 for one that would have to be",
            "livemax",
            (*own, "model"),
        )

    def stepped(self, samples: int, rows: int, cap: int, seconds: float) -> None:
        self._batch_rows.observe(rows)
        # Now and then a batch that is larger than pays off is tried.
        self._batch_occupancy.observe(min(1.0, rows / cap))
        self._step_seconds.observe(seconds)

    def decoded(self, samples: int, seconds: float) -> None:
        self._decode_seconds.observe(seconds)

    def finished(self, timings: Timings) -> None:
        for field in fields(timings):
            self._stage_seconds.labels(field.name).observe(getattr(timings, field.name))

    def update(self, status: Status, waiting: int, memory: MemoryReading | None) -> None:
        """Takes over how an engine is; its counters become increments of ours."""
        self._backlog_seconds.set(status.backlog_seconds)
        self._active.set(status.active)
        self._waiting.set(waiting)
        for state in State:
            self._state.labels(self._runner, state.value).set(status.state is state)
        if memory:
            self._memory_free.labels(self._runner).set(memory.free)
            self._memory_used.labels(self._runner).set(memory.used)
        loaded = {each.name: each.state is ModelState.LOADED for each in status.models}
        self._names.update(loaded)
        for name in self._names:
            self._model_loaded.labels(self._runner, name).set(loaded.get(name, False))
        for name, counter in self._totals.items():
            counter.inc(getattr(status.counters, name) - getattr(self._seen, name))
        self._seen = status.counters

    def serves(self, model: ModelInfo) -> None:
        """Takes note of the default model."""
        self._model_info.labels(model.id, model.revision, model.device, model.dtype).set(1)
