"""A collector of traces on a free port: OTLP over HTTP, with every span that arrived kept in memory."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True, slots=True)
class Span:
    """What a process told of a stage. Ids are in hex; `parent` is empty for the first of a trace; times in ns."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent: str
    start: int
    end: int
    failed: bool


class Collector:
    """Takes spans as long as `collecting` runs."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._lock = threading.Lock()

        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector._take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def trace(self, trace_id: str) -> list[Span]:
        """What has arrived of a trace, in the order of its beginning."""
        with self._lock:
            spans = [span for span in self._spans if span.trace_id == trace_id]
        return sorted(spans, key=lambda span: span.start)

    def _take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        told = ExportTraceServiceRequest.FromString(body)
        for process in told.resource_spans:
            attributes = {each.key: each.value for each in process.resource.attributes}
            service = attributes["service.name"].string_value
            for scope in process.scope_spans:
                spans = [
                    Span(
                        service,
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    )
                    for span in scope.spans
                ]
                with self._lock:
                    self._spans += spans


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens while the block runs."""
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        thread.join()
        collector.server.server_close()
