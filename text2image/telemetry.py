"""The gateway's metrics, as plain Prometheus objects, and the page that shows those of all processes together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
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

from text2image.errors import (
    PermissionDenied,
    QuotaExceeded,
    Text2ImageError,
    Unauthenticated,
    Unavailable,
)

_REFUSALS = (Unauthenticated, PermissionDenied, QuotaExceeded, Unavailable)

# A small picture on a good card takes a tenth of a second, a queue of large ones on a CPU minutes.
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)


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
        self.auth_failures = Counter(
            "text2image_auth_failures",
            "Calls with an API key that was missing, unknown, expired or without the scope that they need.",
            ["why"],
            registry=registry,
        )
        self.pictures = Counter(
            "text2image_pictures",
            "Pictures by whether they were saved: yes, no (switched off) or failed.",
            ["saved"],
            registry=registry,
        )

    @contextlib.contextmanager
    def request(self, transport: str) -> Iterator[None]:
        """Measures one request; however the block ends is how the request is counted."""
        began = time.perf_counter()
        code = "INTERNAL"
        self._in_flight.labels(transport).inc()
        try:
            yield
            code = "OK"
            self._seconds.labels(transport).observe(time.perf_counter() - began)
        except Text2ImageError as error:
            code = error.grpc_code
            if isinstance(error, _REFUSALS):
                self.refusals.labels(error.reason).inc()
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        finally:
            self._in_flight.labels(transport).dec()
            self._requests.labels(transport, code).inc()


def exposition() -> bytes:
    """The metrics of this server's processes, in Prometheus' text form. Reads files where there are several."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return generate_latest(REGISTRY)
    _forget_the_dead(Path(folder))
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, folder)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _forget_the_dead(folder: Path) -> None:
    """Drops the gauges of processes that were killed, which else would count for ever."""
    for file in folder.glob("gauge_live*_*.db"):
        process = int(file.stem.rpartition("_")[2])
        if not _is_alive(process):
            # Another scrape may be at the same files.
            with contextlib.suppress(FileNotFoundError):
                multiprocess.mark_process_dead(process, str(folder))  # type: ignore[no-untyped-call]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
