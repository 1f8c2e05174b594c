"""Requests are counted and logged by how they end, whichever way that is."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from text2image.core.errors import (
    DeadlineExceeded,
    Internal,
    PermissionDenied,
    QuotaExceeded,
    Text2ImageError,
    Unavailable,
)
from text2image.observe.metrics import GatewayMetrics, exposition


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, "OK"),
        (DeadlineExceeded("late"), "DEADLINE_EXCEEDED"),
        (asyncio.CancelledError(), "CANCELLED"),
        (GeneratorExit(), "CANCELLED"),
        (ZeroDivisionError(), "INTERNAL"),
    ],
)
def test_every_end_is_counted_once(error: BaseException | None, code: str) -> None:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)

    def run() -> None:
        with metrics.request("rest"):
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            run()
    else:
        run()
    labels = {"transport": "rest", "code": code}
    assert registry.get_sample_value("text2image_requests_total", labels) == 1
    assert registry.get_sample_value("text2image_requests_in_flight", {"transport": "rest"}) == 0


@pytest.mark.parametrize(
    ("error", "refusals"),
    [
        (QuotaExceeded("slow down", retry_after=1), 1),
        (Unavailable("full", reason=Unavailable.FULL, retry_after=1), 1),
        (PermissionDenied("not yours"), 1),
        (DeadlineExceeded("late"), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_turned_away_is_counted_by_its_reason(
    error: Text2ImageError, refusals: int
) -> None:
    registry = CollectorRegistry()
    with pytest.raises(type(error)), GatewayMetrics(registry).request("rest"):
        raise error
    counted = registry.get_sample_value("text2image_refusals_total", {"reason": error.reason})
    assert (counted or 0) == refusals


def test_a_request_ends_in_one_line_that_tells_how_and_nothing_of_its_prompt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = GatewayMetrics(CollectorRegistry())
    caplog.set_level(logging.INFO)
    error = Internal()
    with pytest.raises(Internal), metrics.request("grpc"):
        raise error
    with pytest.raises(DeadlineExceeded), metrics.request("rest"):
        raise DeadlineExceeded("a zebra took too long")
    first, second = (vars(record) for record in caplog.records)
    assert (first["transport"], first["code"]) == ("grpc", "INTERNAL")
    assert first["error_id"] == error.error_id
    assert (second["code"], second["error_id"]) == ("DEADLINE_EXCEEDED", None)
    assert "zebra" not in caplog.text


def test_what_is_alerted_on_is_there_from_the_beginning() -> None:
    """Prometheus sees no increase in what was not there before."""
    registry = CollectorRegistry()
    GatewayMetrics(registry)
    for name, labels in (
        ("refusals", {"reason": Unavailable.FULL}),
        ("pictures", {"saved": "failed"}),
        ("auth_failures", {"why": "unknown"}),
        ("cache", {"outcome": "hit"}),
    ):
        assert registry.get_sample_value(f"text2image_{name}_total", labels) == 0
    assert registry.get_sample_value("text2image_starts_total", {"role": "gateway"}) == 1


def test_a_stage_is_measured_if_it_was_gone_through() -> None:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    with metrics.stage("png"):
        pass
    with pytest.raises(OSError, match="full"), metrics.stage("png"):
        raise OSError("full")
    assert registry.get_sample_value("text2image_stage_seconds_count", {"stage": "png"}) == 1


def test_killed_processes_are_forgotten(tmp_path: Path) -> None:
    """A gauge of a process that is gone tells nothing any more; its counters still do."""
    lines = [
        "from prometheus_client import Counter, Gauge",
        "Gauge('left', 'help', multiprocess_mode='livesum').set(1)",
        "Counter('done', 'help').inc()",
    ]
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, check=True)
    show = "from text2image.observe.metrics import exposition; print(exposition().decode())"
    shown = subprocess.run(
        [sys.executable, "-c", show], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert "done_total 1.0" in shown
    assert "left 1.0" not in shown


def test_two_pages_at_once_may_forget_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"gauge_livesum_{ended.pid}.db").touch()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    def removed_by_the_other(path: str) -> None:
        Path(path).unlink()
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "remove", removed_by_the_other)
    exposition()
    assert not list(tmp_path.iterdir())
