"""The gateway's metrics, as plain Prometheus objects, and the page that shows those of all processes together.

What is measured as a request or as one of its stages is a span of its trace too (`tracing.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from text2image.core.errors import (
    ContentBlocked,
    Internal,
    PermissionDenied,
    QuotaExceeded,
    Text2ImageError,
    Unauthenticated,
    Unavailable,
)
from text2image.observe import tracing
from text2image.observe.rates import Rates

logger = logging.getLogger(__name__)

# Codes of requests that another server might have answered.
_FAILURES = frozenset(("INTERNAL", "UNAVAILABLE"))
_REFUSALS = (ContentBlocked, Unauthenticated, PermissionDenied, QuotaExceeded, Unavailable)
# What is there from the beginning, at 0, so that its first increase is one.
_REASONS = (
    ContentBlocked.reason,
    Unauthenticated.reason,
    PermissionDenied.reason,
    QuotaExceeded.reason,
    Unavailable.FULL,
    Unavailable.LOADING,
    Unavailable.DRAINING,
    Unavailable.NO_RUNNER,
    Unavailable.STORAGE,
)

# A small picture on a good card takes a tenth of a second, a queue of large ones on a CPU minutes.
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_STAGE_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

# Refusals by the thousand are told in one line of the log each so many seconds.
UNREAD_LOG_SECONDS = 5.0


@cache
def stage_seconds(registry: CollectorRegistry = REGISTRY) -> Histogram:
    """Where a picture's time goes; the runner tells its stages and the gateway the rest."""
    return Histogram(
        "text2image_stage_seconds",
        "Where a picture's time goes, by stage.",
        ["stage"],
        buckets=_STAGE_SECONDS,
        registry=registry,
    )


@cache
def auth_failures(registry: CollectorRegistry = REGISTRY) -> Counter:
    """Calls that were refused for their key, by gateways and on a runner's HTTP port."""
    return Counter(
        "text2image_auth_failures",
        "Calls with an API key that was missing, unknown, expired or without the scope that they need.",
        ["why"],
        registry=registry,
    )


@cache
def _starts(registry: CollectorRegistry) -> Counter:
    return Counter(
        "text2image_starts",
        "Processes that have started since the server did; more than it has is one that was lost.",
        ["role"],
        registry=registry,
    )


def started(role: str, registry: CollectorRegistry = REGISTRY) -> None:
    """Counts this process, a `gateway` or a `runner`."""
    _starts(registry).labels(role).inc()


class GatewayMetrics:
    """Counts what passes through a gateway. Make one a process, once the process is a worker."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._requests = Counter(
            "text2image_requests",
            "Requests by transport and by outcome, in the words of gRPC.",
            ["transport", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "text2image_request_seconds",
            "From the arrival of a request to its last byte, for those that ended well.",
            ["transport"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "text2image_requests_in_flight",
            "Requests that have not ended.",
            ["transport"],
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.runners_ready = Gauge(
            "text2image_runners_ready",
            "Runners that take requests. The gateways count them: one that hangs could not say so.",
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.resends = Counter(
            "text2image_resends",
            "Requests sent again because their runner died.",
            registry=registry,
        )
        self.cache = Counter(
            "text2image_cache",
            "Requests with a seed of their own: hit, miss, or shared with an identical one in flight.",
            ["outcome"],
            registry=registry,
        )
        self.refusals = Counter(
            "text2image_refusals",
            "Requests for pictures that were turned away, by reason.",
            ["reason"],
            registry=registry,
        )
        # Of this process alone, for the balancer that asks it.
        self.rates = Rates()
        self.auth_failures = auth_failures(registry)
        self.pictures = Counter(
            "text2image_pictures",
            "Pictures by whether they were saved: yes, no (switched off) or failed.",
            ["saved"],
            registry=registry,
        )
        self.blocked = Counter(
            "text2image_blocked",
            "What was not given out, by whether a prompt was denied or a picture that was drawn.",
            ["what"],
            registry=registry,
        )
        self.model_pictures = Counter(
            "text2image_model_pictures",
            "Pictures that were drawn, by model.",
            ["model"],
            registry=registry,
        )
        self._stage_seconds = stage_seconds(registry)
        # To find them takes as long as to count.
        self._unread_counters = cache(
            lambda transport, code, reason: (
                self._requests.labels(transport, code),
                self.refusals.labels(reason),
            )
        )
        self._unread = 0
        self._unread_told = -UNREAD_LOG_SECONDS
        started("gateway", registry)
        for why in ("missing", "unknown", "expired", "scope"):
            self.auth_failures.labels(why)
        for reason in _REASONS:
            self.refusals.labels(reason)
        for outcome in ("hit", "miss", "shared"):
            self.cache.labels(outcome)
        for what in ("prompt", "picture"):
            self.blocked.labels(what)
        for saved in ("yes", "no", "failed"):
            self.pictures.labels(saved)

    @contextlib.contextmanager
    def request(self, transport: str) -> Iterator[None]:
        """Measures, traces and logs one request; however the block ends is how the request is counted."""
        began = time.perf_counter()
        code, error_id = "INTERNAL", None
        self._in_flight.labels(transport).inc()
        try:
            with tracing.request(transport):
                yield
            code = "OK"
            self._seconds.labels(transport).observe(time.perf_counter() - began)
        except Text2ImageError as error:
            code = error.grpc_code
            error_id = error.error_id if isinstance(error, Internal) else None
            if isinstance(error, _REFUSALS):
                self.refusals.labels(error.reason).inc()
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        finally:
            self._in_flight.labels(transport).dec()
            self._requests.labels(transport, code).inc()
            self.rates.count(failed=code in _FAILURES)
            told = {"transport": transport, "code": code, "error_id": error_id}
            seconds = time.perf_counter() - began
            logger.info("%s request: %s, %.3f s", transport, code, seconds, extra=told)

    def refused_unread(self, transport: str, error: Text2ImageError) -> None:
        """Counts a request that was refused before anything was done for it; the log has a line for many."""
        for counter in self._unread_counters(transport, error.grpc_code, error.reason):
            counter.inc()
        self.rates.count(failed=error.grpc_code in _FAILURES)
        self._unread += 1
        now = time.monotonic()
        if now - self._unread_told >= UNREAD_LOG_SECONDS:
            logger.info("refused unread since the last such line: %d requests", self._unread)
            self._unread, self._unread_told = 0, now

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures and traces one stage of a request."""
        began = time.perf_counter()
        with tracing.stage(name):
            yield
        self._stage_seconds.labels(name).observe(time.perf_counter() - began)


def exposition() -> bytes:
    """The metrics of this server's processes, in Prometheus' text form. Reads files where there are several."""
    folder = _folder()
    if folder is None:
        return generate_latest(REGISTRY)
    forget_the_dead()
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def forget_the_dead() -> None:
    """Drops the gauges of processes that were killed, which else would count for ever."""
    folder = _folder()
    if folder is None:
        return
    for file in folder.glob("gauge_live*_*.db"):
        process = int(file.stem.rpartition("_")[2])
        if not _is_alive(process):
            # Another scrape may be at the same files.
            with contextlib.suppress(FileNotFoundError):
                multiprocess.mark_process_dead(process, str(folder))  # type: ignore[no-untyped-call]


def _folder() -> Path | None:
    """Where this server's processes put what they measure, if there are several."""
    named = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(named) if named else None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
