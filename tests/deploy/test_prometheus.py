"""What a server tells those who watch it: rules and dashboard name what is there, and a trace crosses all of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml

from tests import debian
from tests.collector import Collector, Span, collecting
from tests.e2e.harness import ROOT, Server, eventually, free_port, serving
from text2image.net import wire
from text2image.v1 import image_generation_pb2 as pb

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "text2image.json").read_text())
RULES = {
    rule.get("alert") or rule["record"]: rule
    for file in (PROMETHEUS / "rules").glob("*.yml")
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
}
ALERTS = {name: rule for name, rule in RULES.items() if "alert" in rule}
PANELS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
CLIENT_SPAN = "b7ad6b7169203331"
GATEWAY_STAGES = {"validating", "runner", "png", "storing"}
RUNNER_STAGES = {"queued", "encoding", "denoising", "decoding"}


def promtool(*words: str) -> None:
    debian.command("prometheus")
    done = subprocess.run(
        ["promtool", *words], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """A real one, with our configuration; only the clock of its scrapes is faster."""

    def __init__(self, port: int) -> None:
        self._api = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30)

    def ask(self, path: str, **parameters: str) -> Any:
        answer = self._api.get(path, params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[Any]:
        """The series of an expression of the dashboard, for all there is."""
        for name, value in {
            "$job": "text2image",
            "$instance": ".+",
            "$__rate_interval": "1m",
        }.items():
            expression = expression.replace(name, value)
        series: list[Any] = self.ask("/query", query=expression)["result"]
        return series

    def answers(self) -> bool:
        try:
            return bool(self.ask("/query", query="up == 1")["result"])
        except (httpx.TransportError, json.JSONDecodeError):
            return False


@contextmanager
def scraping(server: Server, folder: Path) -> Iterator[Prometheus]:
    shutil.copytree(PROMETHEUS, folder, dirs_exist_ok=True)
    config = folder / "prometheus.yml"
    config.write_text(config.read_text().replace("15s", "1s"))
    targets = [{"targets": [f"127.0.0.1:{server.http_port}"]}]
    (folder / "targets.yml").write_text(yaml.safe_dump(targets))
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                debian.command("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        prometheus = Prometheus(port)
        eventually(prometheus.answers, "the server is scraped")
        yield prometheus
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("watched")
    settings = {"T2I_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with serving(Server(folder, **settings)) as running:
        yield running


def draw(server: Server, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"text": "a narwhal", "steps": 2, **fields}
    return httpx.post(f"{server.url}/generate", json=body, headers=headers, timeout=120)


def test_the_configuration_and_the_rules_are_valid() -> None:
    promtool("check", "config", "prometheus.yml")


def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", "rules-test.yml")
    tested = (PROMETHEUS / "rules-test.yml").read_text()
    assert {name for name in ALERTS if f'"{name}"' not in tested} == set()


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_it_means_and_what_to_do(name: str) -> None:
    assert set(ALERTS[name]["annotations"]) == {"summary", "description", "action"}
    assert ALERTS[name]["labels"]["severity"] in {"page", "ticket"}
    assert name in (ROOT / "docs" / "monitoring.md").read_text()


def test_rules_and_dashboard_name_what_a_server_tells(server: Server, tmp_path: Path) -> None:
    named = set(
        re.findall(r"text2image_\w+", " ".join([*PANELS, *(r["expr"] for r in RULES.values())]))
    )
    with scraping(server, tmp_path) as prometheus:
        assert draw(server, seed=1).status_code == 200
        eventually(
            lambda: prometheus.query("text2image_request_seconds_count > 0"), "a picture is counted"
        )
        # What has happened since is a rate.
        assert draw(server, seed=1).json()["cached"]
        assert draw(server, seed=2).status_code == 200
        for expression in PANELS:
            eventually(
                lambda expression=expression: prometheus.query(expression),
                f"the dashboard shows {expression}",
            )
        known = set(prometheus.ask("/label/__name__/values"))
        assert named - known == set()
        groups = prometheus.ask("/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == set(RULES)
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_what_is_documented_of_metrics_is_there(server: Server) -> None:
    documented = set(
        re.findall(r"`(text2image_\w+)", (ROOT / "docs" / "monitoring.md").read_text())
    )
    told = set(
        re.findall(r"^# TYPE (text2image_\w+)", httpx.get(f"{server.url}/metrics").text, re.M)
    )
    assert told == documented


def whole_trace(collector: Collector, trace_id: str) -> dict[str, Span]:
    """The spans of a trace by name, once both processes have told theirs."""

    def complete() -> bool:
        names = {span.name for span in collector.trace(trace_id)}
        return {"Generate", *GATEWAY_STAGES, *RUNNER_STAGES} <= names and len(names) >= 10

    eventually(complete, "the trace is whole")
    return {span.name: span for span in collector.trace(trace_id)}


def assert_is_one_trace(spans: Mapping[str, Span], transport: str) -> None:
    """Stages hang below the request in the gateway, and below its call in the runner."""
    request, call, answered = spans[transport], spans["runner"], spans["Generate"]
    assert {request.service, call.service} == {"text2image-gateway"}
    assert answered.parent == call.span_id
    for name in GATEWAY_STAGES:
        assert spans[name].parent == request.span_id
    for name in RUNNER_STAGES:
        assert spans[name].service == answered.service == "text2image-runner"
        assert spans[name].parent == answered.span_id
    by_id = {span.span_id: span for span in spans.values()}
    for span in spans.values():
        assert not span.failed
        if around := by_id.get(span.parent):
            assert around.start <= span.start <= span.end <= around.end, span.name


def test_a_request_over_http_is_one_trace(server: Server, collector: Collector) -> None:
    """It goes on with the client's, and the answer and the log tell its id."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    answer = draw(server, {"traceparent": f"00-{trace_id}-{CLIENT_SPAN}-01"}, seed=3)
    assert answer.headers["X-Trace-Id"] == trace_id
    spans = whole_trace(collector, trace_id)
    assert_is_one_trace(spans, "rest")
    assert spans["rest"].parent == CLIENT_SPAN
    assert spans["recalling"].parent == spans["rest"].span_id
    records = [json.loads(line) for line in server.log.splitlines() if trace_id in line]
    assert {"text2image.observe.metrics", "bentoml.access"} <= {
        record["logger"] for record in records
    }
    assert "narwhal" not in server.log


def test_a_request_over_grpc_is_one_trace(server: Server, collector: Collector) -> None:
    """It begins with the request, where the client names none."""
    with grpc.insecure_channel(server.address) as channel:
        call = wire.stub(channel).Generate(pb.GenerateRequest(prompt="a narwhal", steps=2))
        events = [message.WhichOneof("event") for message in call]
        trace_id = dict(call.initial_metadata())["x-trace-id"]
    assert events[-1] == "completed"
    spans = whole_trace(collector, trace_id)
    assert_is_one_trace(spans, "grpc_v1")
    assert spans["grpc_v1"].parent == ""


def test_every_answer_tells_its_trace(server: Server) -> None:
    """Whoever has asked, for whatever, may say which answer is meant; the first gRPC contract does so too."""
    told = [
        httpx.get(f"{server.url}{path}").headers["X-Trace-Id"]
        for path in ("/livez", "/nowhere", "/generate/nowhere", "/v1/models")
    ]
    with grpc.insecure_channel(server.address) as channel:
        generate = channel.unary_unary("/Text2ImageService/GenerateImage")
        _, call = generate.with_call(b"", timeout=60)
        told.append(dict(call.initial_metadata())["x-trace-id"])
    assert all(re.fullmatch(r"[0-9a-f]{32}", trace_id) for trace_id in told), told
    assert len(set(told)) == len(told)


def test_a_refused_request_has_a_trace_too(server: Server, collector: Collector) -> None:
    answer = draw(server, steps=0)
    assert answer.status_code == 400
    trace_id = answer.headers["X-Trace-Id"]
    spans = eventually(lambda: collector.trace(trace_id), "the trace arrives")
    assert all(span.failed for span in spans if span.name in {"rest", "validating"})
