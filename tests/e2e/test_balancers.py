"""What balancers look at: load reports, gauges, the health of models; and calls that are cancelled by their id."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import NET
from tests.e2e.harness import Server, eventually
from tests.web import call as call_web
from tests.web import framed
from text2image.net import text2image_pb2 as seed
from text2image.net.orca_load_report_pb2 import OrcaLoadReport
from text2image.v1 import image_generation_pb2 as pb
from text2image.v1.image_generation_pb2_grpc import ImageGenerationStub

TRAILER = "endpoint-load-metrics-bin"
SMALL = {"steps": 1, "width": 64, "height": 64}


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


class Tap:
    """A relay to a port that keeps what the server sends: grpc hides load reports from clients of its own."""

    def __init__(self, port: int) -> None:
        self.sent = b""
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())

    def __enter__(self) -> Tap:
        threading.Thread(target=self._relay, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _relay(self) -> None:
        here, _ = self._listener.accept()
        there = socket.create_connection(("127.0.0.1", self._port))
        threading.Thread(target=self._copy, args=(here, there), daemon=True).start()
        self._copy(there, here, keep=True)

    def _copy(self, source: socket.socket, sink: socket.socket, *, keep: bool = False) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if keep:
                    self.sent += data
                sink.sendall(data)


@pytest.mark.parametrize("steps", [1, 0], ids=["drawn", "refused"])
@pytest.mark.parametrize("contract", ["v1", "first"])
def test_every_call_that_draws_ends_with_the_load(
    server: Server, contract: str, steps: int
) -> None:
    small = {**SMALL, "steps": steps}
    with Tap(server.grpc_port) as tap, grpc.insecure_channel(tap.address) as channel:
        if contract == "v1":
            call = ImageGenerationStub(channel).Generate(
                pb.GenerateRequest(prompt="a fox", **small), timeout=60
            )
            with nullcontext() if steps else pytest.raises(grpc.RpcError):
                list(call)
            # The reason of a refusal comes beside it.
            details = any(name == "grpc-status-details-bin" for name, _ in call.trailing_metadata())
            assert details is not bool(steps)
        else:
            first = channel.unary_unary(
                "/Text2ImageService/GenerateImage",
                request_serializer=seed.ImageRequest.SerializeToString,
                response_deserializer=seed.ImageResponse.FromString,
            )
            assert first(seed.ImageRequest(text="a fox", **small), timeout=60).status_code in (
                200,
                400,
            )
        assert tap.sent.count(TRAILER.encode()) == 1


def test_the_report_is_the_load(server: Server) -> None:
    for steps, status in ((1, 0), (0, 3)):
        asked = pb.GenerateRequest(prompt="a fox", **{**SMALL, "steps": steps})
        _, answer = call_web(server.url, "Generate", framed(asked))
        assert answer.status == status
        told = answer.trailers[TRAILER]
        report = OrcaLoadReport.FromString(base64.b64decode(told + "=" * (-len(told) % 4)))
        assert report.application_utilization >= 0
        assert set(report.named_metrics) == {
            "requests_waiting",
            "requests_running",
            "backlog_seconds",
        }
    assert report.rps_fractional > 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"text": "a fox", **SMALL}),
        ("/v1/images/generations", {"prompt": "a fox", "steps": 1, "size": "64x64"}),
    ],
)
def test_http_tells_the_load_to_whoever_asks(
    server: Server, path: str, body: dict[str, object]
) -> None:
    def told(form: str | None) -> str | None:
        headers = {"Endpoint-Load-Metrics-Format": form} if form else {}
        answer = httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200
        return answer.headers.get("Endpoint-Load-Metrics")

    as_json, as_text = told("JSON"), told("text")
    assert as_json
    assert as_text
    kind, _, report = as_json.partition(" ")
    assert kind == "JSON"
    assert json.loads(report)["rps_fractional"] > 0
    kind, _, pairs = as_text.partition(" ")
    assert kind == "TEXT"
    fields = dict(pair.split("=") for pair in pairs.split(","))
    assert float(fields["named_metrics.requests_waiting"]) == 0
    assert told(None) is None
    assert told("XML") is None


def test_an_endpoint_picker_finds_its_gauges(server: Server) -> None:
    families = {
        family.name: family.samples
        for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    }
    for name in ("requests_waiting", "requests_running", "utilization"):
        (sample,) = families[f"text2image_{name}"]
        assert sample.value >= 0
        assert sample.labels == {}
    (info,) = families["text2image_lora_requests_info"]
    names, nets = ["embedded", "gpt-image-1", "dall-e-2"], [NET]
    # Nets that other requests were steered by are in memory too.
    assert info.labels["running_lora_adapters"].split(",") in (names, names + nets)
    assert info.labels["waiting_lora_adapters"] == ""
    assert int(info.labels["max_lora"]) >= 3


def test_models_have_a_health_of_their_own(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for name in ("embedded", "gpt-image-1"):
        asked = health_pb2.HealthCheckRequest(service=name)
        assert stub.Check(asked, timeout=60).status == health_pb2.HealthCheckResponse.SERVING
        watching = stub.Watch(asked, timeout=60)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()


def test_a_call_is_cancelled_by_its_id(server: Server, channel: grpc.Channel) -> None:
    stub = ImageGenerationStub(channel)
    asked = pb.GenerateRequest(prompt="a fox", steps=150, n=4, request_id="job-1")
    call = stub.Generate(asked, timeout=600)
    assert next(call).HasField("queued")
    with pytest.raises(grpc.RpcError) as twice:
        list(stub.Generate(asked, timeout=600))
    assert twice.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "request_id" in twice.value.details()
    ended: list[grpc.StatusCode] = []

    def read() -> None:
        try:
            list(call)
        except grpc.RpcError as error:
            ended.append(error.code())

    reading = threading.Thread(target=read)
    reading.start()
    assert stub.Cancel(pb.CancelRequest(request_id="job-1"), timeout=60).found
    reading.join(60)
    assert ended == [grpc.StatusCode.CANCELLED]
    with server.engine() as engine:
        eventually(lambda: engine.status().active == 0, "its work has ended")
    assert not stub.Cancel(pb.CancelRequest(request_id="job-1"), timeout=60).found
    with pytest.raises(grpc.RpcError) as empty:
        stub.Cancel(pb.CancelRequest(), timeout=60)
    assert empty.value.code() is grpc.StatusCode.INVALID_ARGUMENT
