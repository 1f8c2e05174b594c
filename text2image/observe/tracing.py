"""Traces: one for each request, one span for each stage of it, from the gateway into the runner that draws.

Every request has a trace, with the id that its client sends in `traceparent` or else one made here. The id stands in
the answer's headers and in the log. Spans are made only after `set_up`, which says where they go; without it a stage
costs a function call. Nothing here is called in the engine's thread: its stages are told afterwards, from the timings.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from urllib.parse import urlsplit

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from text2image import __version__
from text2image.core.addresses import is_loopback
from text2image.core.messages import Timings

# What an answer's trace id is called in HTTP's headers and in gRPC's initial metadata.
TRACE_HEADER = "X-Trace-Id"
# Seconds that sending spans may take; at the end of the process they are waited for.
EXPORT_TIMEOUT = 3.0
_TRACES_PATH = "/v1/traces"
# Parsing takes longer than looking, and most requests name no trace.
_TRACEPARENT = "traceparent"

_ids = RandomIdGenerator()
_propagator = TraceContextTextMapPropagator()
# The span that stages hang below. Set once in a request's own task and in what is started from it, and never put back:
# a generator may be closed in another context than its own.
_request: ContextVar[Span] = ContextVar("request", default=INVALID_SPAN)
_tracer: Tracer | None = None


class _RequestIds(RandomIdGenerator):
    """Gives the first span of a trace the id that the request has already."""

    def generate_trace_id(self) -> int:
        known: int = _request.get().get_span_context().trace_id
        return known or super().generate_trace_id()


class Export:
    """Spans on their way to a collector, until `close`."""

    def __init__(self, endpoint: str, service: str) -> None:
        """
        Args:
            endpoint: where a collector takes OTLP over HTTP, as in `http://localhost:4318`.
            service: what the spans of this process are filed under.
        """
        # Here, since a server that traces nothing needs none of them.
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        url = endpoint.rstrip("/").removesuffix(_TRACES_PATH) + _TRACES_PATH
        resource = Resource.create({"service.name": service, "service.version": __version__})
        self._provider = TracerProvider(
            resource=resource, id_generator=_RequestIds(), shutdown_on_exit=False
        )
        session = requests.Session()
        # A collector on this machine is not reached through a proxy of the environment.
        session.trust_env = not is_loopback(urlsplit(url).hostname or "")
        exporter = OTLPSpanExporter(url, timeout=EXPORT_TIMEOUT, session=session)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("text2image", __version__)

    async def close(self) -> None:
        """Sends what is left."""
        global _tracer
        _tracer = None
        await asyncio.to_thread(self._provider.shutdown)


def set_up(endpoint: str | None, service: str) -> Export | None:
    """Makes spans from now on, if there is an endpoint to send them to. Call it once in a process."""
    global _tracer
    if endpoint is None:
        return None
    export = Export(endpoint, service)
    _tracer = export.tracer
    return export


def begin(headers: Mapping[str, str]) -> str:
    """Takes up the trace that a request names in its headers, or begins one, and returns its id, 32 hex digits."""
    _request.set(_span_of(headers))
    return trace_id()


def id_of(headers: Mapping[str, str]) -> str:
    """The id of the trace that a request names, or of one that is begun for it alone: nothing of it is told."""
    named = _TRACEPARENT in headers
    return format_trace_id(
        _span_of(headers).get_span_context().trace_id if named else _ids.generate_trace_id()
    )


def _span_of(headers: Mapping[str, str]) -> Span:
    named = _TRACEPARENT in headers
    span = get_current_span(_propagator.extract(headers)) if named else INVALID_SPAN
    if not span.get_span_context().is_valid:
        # Where spans are made, the request's own is the first of its trace and has no parent.
        span_id = 0 if _tracer else _ids.generate_span_id()
        flags = TraceFlags(TraceFlags.DEFAULT)
        context = SpanContext(_ids.generate_trace_id(), span_id, is_remote=False, trace_flags=flags)
        span = NonRecordingSpan(context)
    return span


def trace_id() -> str:
    """The id of the trace that this task works for, empty if it works for none."""
    known = _request.get().get_span_context().trace_id
    return format_trace_id(known) if known else ""


@contextmanager
def request(name: str) -> Iterator[Span]:
    """The span of a whole request, below which its stages hang."""
    if not trace_id():
        begin({})
    span = start(name, SpanKind.SERVER)
    _request.set(span)
    with _ending(span):
        yield span


@contextmanager
def stage(name: str) -> Iterator[Span]:
    """The span of one stage of the request that this task works for."""
    span = start(name)
    with _ending(span):
        yield span


def start(name: str, kind: SpanKind = SpanKind.INTERNAL) -> Span:
    """A span of the request that this task works for; whoever starts it ends it."""
    parent = _request.get()
    if _tracer is None:
        return NonRecordingSpan(parent.get_span_context())
    return _tracer.start_span(name, set_span_in_context(parent), kind)


def failed(span: Span, error: BaseException) -> None:
    """Marks a span as that of a failure, of which it tells no more than the kind: words may be the prompt's."""
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(StatusCode.ERROR)


def headers_of(span: Span) -> tuple[tuple[str, str], ...]:
    """What tells the other side of a call that its work is part of a span."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, set_span_in_context(span))
    return tuple(carrier.items())


def drawn(index: int, admitted_ns: int, timings: Timings) -> None:
    """Tells the stages of a picture that is just finished, of a request that was admitted at `admitted_ns`."""
    if _tracer is None:
        return
    now = time.time_ns()
    begins = admitted_ns
    for name in ("queued", "encoding", "denoising", "decoding"):
        length = round(getattr(timings, name) * 1e9)
        if name == "decoding":
            # It need not follow at once upon the last step.
            begins = max(begins, now - length)
        span = _tracer.start_span(
            name,
            set_span_in_context(_request.get()),
            attributes={"text2image.picture": index},
            start_time=begins,
        )
        begins = min(begins + length, now)
        span.end(begins)


@contextmanager
def _ending(span: Span) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        failed(span, error)
        raise
    finally:
        span.end()
