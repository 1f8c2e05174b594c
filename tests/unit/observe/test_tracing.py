"""Every request has a trace; spans are made of it only where somebody asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar

import pytest
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan

from tests.collector import Collector, Span, collecting
from tests.e2e.harness import eventually
from text2image.core.errors import DeadlineExceeded
from text2image.core.messages import Timings
from text2image.observe import tracing

KNOWN = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{KNOWN}-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests without a task of their own leave their traces behind."""
    monkeypatch.setattr(tracing, "_request", ContextVar("request", default=INVALID_SPAN))


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    # What is unsent is sent when the export is closed.
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    with collecting() as collector:
        yield collector


def traceparent_of(span: object) -> str:
    return dict(tracing.headers_of(span))["traceparent"]  # type: ignore[arg-type]


async def test_a_trace_that_the_client_names_is_taken_up_and_passed_on() -> None:
    assert tracing.begin({"traceparent": TRACEPARENT, "tracestate": "vendor=1"}) == KNOWN
    with tracing.request("rest") as span:
        assert tracing.trace_id() == KNOWN
        headers = dict(tracing.headers_of(span))
    assert headers == {"traceparent": TRACEPARENT, "tracestate": "vendor=1"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": ""},
        {"traceparent": "nonsense\n"},
        {"traceparent": f"00-{'0' * 32}-b7ad6b7169203331-01"},
        {"traceparent": f"00-{KNOWN}-{'0' * 16}-01"},
        {"traceparent": TRACEPARENT.upper()},
    ],
)
async def test_without_one_that_is_valid_a_trace_begins_here(headers: dict[str, str]) -> None:
    trace_id = tracing.begin(headers)
    assert len(trace_id) == 32
    assert trace_id != KNOWN
    # Not sampled: nobody is to keep what nobody asked for.
    assert traceparent_of(tracing.start("runner")).startswith(f"00-{trace_id}-")
    assert traceparent_of(tracing.start("runner")).endswith("-00")


async def test_requests_side_by_side_have_traces_of_their_own() -> None:
    async def request() -> tuple[str, str]:
        begun = tracing.begin({})
        await asyncio.sleep(0)
        return begun, tracing.trace_id()

    seen = await asyncio.gather(*(request() for _ in range(5)))
    assert all(begun == later for begun, later in seen)
    assert len({begun for begun, _ in seen}) == 5
    assert tracing.trace_id() == ""


async def test_what_is_started_for_a_request_works_for_its_trace() -> None:
    """In a thread and in a task, as pictures are encoded and flights are flown."""
    trace_id = tracing.begin({})
    assert await asyncio.to_thread(tracing.trace_id) == trace_id

    async def work() -> str:
        return tracing.trace_id()

    assert await asyncio.create_task(work()) == trace_id


async def test_a_request_that_nobody_announced_has_a_trace() -> None:
    with tracing.request("rest"):
        assert tracing.trace_id()


async def test_nothing_is_recorded_where_nobody_asks_for_it() -> None:
    assert tracing.set_up(None, "service") is None
    with tracing.request("rest") as request, tracing.stage("png") as stage:
        assert type(request) is type(stage) is NonRecordingSpan
    tracing.drawn(0, 0, Timings(1, 1, 1, 1))


async def recorded(collector: Collector, headers: dict[str, str]) -> dict[str, Span]:
    export = tracing.set_up(collector.endpoint + "/", "service")
    assert export
    trace_id = tracing.begin(headers)
    with tracing.request("rest"):
        with tracing.stage("png"):
            pass
        with pytest.raises(DeadlineExceeded), tracing.stage("storing"):
            raise DeadlineExceeded("of a secret prompt")
    await export.close()
    assert not tracing.start("late").is_recording()
    return {
        span.name: span
        for span in eventually(lambda: collector.trace(trace_id), "the trace arrives")
    }


async def test_stages_hang_below_the_request_and_the_request_below_its_client(
    collector: Collector,
) -> None:
    spans = await recorded(collector, {"traceparent": TRACEPARENT})
    assert spans["rest"].parent == "b7ad6b7169203331"
    assert spans["png"].parent == spans["storing"].parent == spans["rest"].span_id
    assert [name for name, span in spans.items() if span.failed] == ["storing"]


async def test_the_first_span_of_a_trace_has_the_id_that_the_client_was_told(
    collector: Collector,
) -> None:
    spans = await recorded(collector, {})
    assert set(spans) == {"rest", "png", "storing"}
    assert spans["rest"].parent == ""


async def test_what_a_client_does_not_want_traced_is_not(collector: Collector) -> None:
    export = tracing.set_up(collector.endpoint, "service")
    assert export
    tracing.begin({"traceparent": TRACEPARENT.removesuffix("01") + "00"})
    with tracing.request("rest"):
        pass
    await export.close()
    assert collector.trace(KNOWN) == []


async def test_a_pictures_stages_follow_one_another(collector: Collector) -> None:
    export = tracing.set_up(collector.endpoint, "service")
    assert export
    trace_id = tracing.begin({})
    with tracing.request("Generate"):
        tracing.drawn(0, 10**9, Timings(queued=1, encoding=2, denoising=3, decoding=4))
    await export.close()
    spans = {span.name: span for span in collector.trace(trace_id)}
    second = 10**9
    assert (spans["queued"].start, spans["queued"].end) == (second, 2 * second)
    assert (spans["encoding"].start, spans["encoding"].end) == (2 * second, 4 * second)
    assert (spans["denoising"].start, spans["denoising"].end) == (4 * second, 7 * second)
    # It was just finished, and may have waited before.
    assert spans["decoding"].end - spans["decoding"].start == 4 * second
    assert spans["Generate"].start <= spans["decoding"].end <= spans["Generate"].end


async def test_a_collector_that_is_away_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "EXPORT_TIMEOUT", 0.1)
    export = tracing.set_up("http://127.0.0.1:9", "service")
    assert export
    with tracing.request("rest"):
        pass
    await export.close()
