"""What is compiled is compiled in the background, for a bounded number of shapes, and gives the same pictures."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.doubles import make_request
from tests.integration.engine.conftest import (
    DEVICE,
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
)
from text2image.core.messages import Sampler
from text2image.engine import devices
from text2image.engine.models.loading import load_model
from text2image.engine.runtimes import buckets
from text2image.engine.runtimes.buckets import Buckets, bucket_of

CPU = torch.device("cpu")


class Compiler:
    """A backend of torch.compile that runs what it is given as it is, as soon as it may, and counts."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.may.set()
        self.begun = threading.Event()
        self.rows: list[int] = []
        self.threads: set[str] = set()
        self.failure: Exception | None = None
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Any:
        self.rows.append(max(len(each) for each in examples if each.ndim))
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        assert self.may.wait(60)
        if self.failure:
            raise self.failure

        def run(*inputs: torch.Tensor) -> Any:
            self.runs += 1
            return graph(*inputs)

        return run


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    backend = Compiler()
    monkeypatch.setattr(buckets, "BACKEND", backend)
    monkeypatch.setattr(buckets, "WORTH", 1)
    return backend


def network(latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return latents * 2 + timesteps[:, None]


def settle(compiled: Buckets) -> None:
    """Waits until there is nothing to compile."""
    if worker := compiled._worker:
        worker.join(60)
        assert not worker.is_alive()


@torch.inference_mode()
def check(compiled: Buckets, rows: int, width: int = 3) -> torch.Tensor:
    inputs = torch.randn(rows, width), torch.randn(rows)
    output = compiled(*inputs)
    assert torch.equal(output, network(*inputs))
    return output


def test_rows_are_padded_up_to_few_buckets_and_never_beyond_the_cap() -> None:
    sizes = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    assert sorted({bucket_of(rows, 128) for rows in range(1, 129)}) == sizes
    for rows in range(1, 129):
        assert rows <= bucket_of(rows, 128) <= max(rows + 1, 1.6 * rows)
    assert [bucket_of(rows, 20) for rows in (15, 17, 20, 21)] == [16, 20, 20, 21]


def test_it_serves_as_it_is_while_another_thread_compiles_and_compiled_from_then_on(
    compiler: Compiler,
) -> None:
    compiled = Buckets(network, CPU, most_rows=32)
    compiler.may.clear()
    check(compiled, 5)
    assert compiler.begun.wait(60)
    check(compiled, 5)
    assert compiler.runs == 0
    compiler.may.set()
    settle(compiled)
    before = compiler.runs
    for rows in (5, 6, 7, 8):
        check(compiled, rows)
    assert compiler.runs == before + 4
    assert compiler.rows == [8]
    assert compiler.threads == {"compile"}


def test_an_output_stays_as_it_is_when_the_next_one_comes(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded(work: Callable[[], torch.Tensor], *_: Any) -> Callable[[], torch.Tensor]:
        """Writes to the same memory each time, as a graph of CUDA does."""
        output = work()
        return lambda: output.copy_(work())

    monkeypatch.setattr(devices, "recorded", recorded)
    compiled = Buckets(network, CPU, most_rows=32)
    check(compiled, 4)
    settle(compiled)
    first = check(compiled, 4)
    kept = first.clone()
    check(compiled, 3)
    assert torch.equal(first, kept)


def test_the_shapes_that_are_compiled_are_bounded(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "MOST_SHAPES", 3)
    compiled = Buckets(network, CPU, most_rows=32)
    for width in (2, 3, 4, 5, 6):
        for _ in range(2):
            check(compiled, 2, width)
            settle(compiled)
    assert len(compiler.rows) == 3


def test_what_is_asked_for_most_is_compiled_next(compiler: Compiler) -> None:
    compiled = Buckets(network, CPU, most_rows=32)
    compiler.may.clear()
    check(compiled, 1)
    assert compiler.begun.wait(60)
    check(compiled, 2)
    for _ in range(3):
        check(compiled, 16)
    compiler.may.set()
    settle(compiled)
    assert compiler.rows == [1, 16, 2]


def test_what_the_warm_up_asks_for_alone_is_not_compiled() -> None:
    compiled = Buckets(network, CPU, most_rows=32)
    for _ in range(buckets.WORTH - 1):
        check(compiled, 2)
    assert compiled._worker is None
    assert not compiled._due


def test_a_failure_to_compile_is_told_once_and_costs_nobody_anything(
    compiler: Compiler, caplog: pytest.LogCaptureFixture
) -> None:
    compiler.failure = RuntimeError("no compiler")
    compiled = Buckets(network, CPU, most_rows=32)
    for rows in (2, 2, 4, 4, 8):
        check(compiled, rows)
        settle(compiled)
    told = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len([each for each in told if "not compiled" in each.getMessage()]) == 1


def test_for_want_of_memory_one_bucket_stays_as_it_is_and_others_are_compiled(
    compiler: Compiler, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = Buckets(network, CPU, most_rows=32)
    compiler.failure = torch.OutOfMemoryError("CUDA out of memory")
    check(compiled, 8)
    settle(compiled)
    compiler.failure = None
    check(compiled, 8)
    check(compiled, 2)
    settle(compiled)
    assert compiler.rows == [8, 2]
    before = compiler.runs
    check(compiled, 2)
    check(compiled, 8)
    assert compiler.runs == before + 1
    assert "no memory to compile for 8 rows" in caplog.text


def test_a_process_that_compiles_ends_without_waiting_for_it() -> None:
    """Neither for what still comes to a line of Python, nor for what waits inside of torch for its turn."""
    script = """
import threading, torch
from text2image.engine.runtimes import buckets
begun = threading.Event()
def backend(graph, examples):
    begun.set()
    while True:
        pass
buckets.BACKEND, buckets.WORTH = backend, 1
for _ in range(2):
    buckets.Buckets(lambda x: x + 1, torch.device("cpu"), most_rows=8)(torch.ones(2))
    assert begun.wait(60)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=120, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    # A U-Net and a transformer, and the guidance of those that begin and of those that join them: first two rows, and
    # then three, which are padded. Tracing takes seconds for each number of rows.
    ("kind", "sampler", "begin", "join"),
    [
        ("sd1", Sampler.DPMPP_2M, [5.0], [1.0]),
        ("flux-dev", Sampler.FLOW_EULER, [5.0, 1.0], [7.5]),
    ],
)
def test_invariant_1_with_compiled_buckets_a_picture_depends_on_its_request_alone(
    pipeline_folder: Callable[[str], Path],
    compiler: Compiler,
    kind: str,
    sampler: Sampler,
    begin: list[float],
    join: list[float],
) -> None:
    """Traced by torch.compile and then run as it is: generating kernels would take minutes."""
    folder = str(pipeline_folder(kind))
    requests = [
        make_request("a cat", steps=steps, seed=seed, guidance_scale=scale, sampler=sampler)
        for seed, (steps, scale) in enumerate(
            [*((3, scale) for scale in begin), *((2, scale) for scale in join)]
        )
    ]
    plain = load_model(settings_for(folder), 0, lambda detail: None)
    alone = [draw_alone(plain, request) for request in requests]
    model = load_model(settings_for(folder, "compile"), 0, lambda detail: None)
    for _ in range(2):
        harness = harness_for(model)
        generations = [harness.submit(request) for request in requests[: len(begin)]]
        harness.loop.tick()
        generations += [harness.submit(request) for request in requests[len(begin) :]]
        harness.finish()
        for generation, picture in zip(generations, alone, strict=True):
            (image,) = harness.images(generation)
            assert np.abs(array(image) - picture).max() <= TOLERANCE
        # The first time it is compiled on the way, the second time it is there.
        settle(model._networks._network)  # type: ignore[attr-defined]
    made = model._networks._network._made  # type: ignore[attr-defined]
    assert {rows for rows, _ in made} == {2, 4}
    assert compiler.runs > len(made) * 2, "the second time around they served"
    assert compiler.threads == {"compile"}


@pytest.mark.skipif(DEVICE == "cpu", reason="generating kernels for a CPU would take minutes")
def test_invariant_1_on_a_card_graphs_of_compiled_kernels_draw_the_same(
    pipeline_folder: Callable[[str], Path], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "WORTH", 1)
    folder = str(pipeline_folder("sd1"))
    request = make_request("a cat", steps=3, seed=1)
    plain = load_model(settings_for(folder), 0, lambda detail: None)
    model = load_model(settings_for(folder, "compile"), 0, lambda detail: None)
    draw_alone(model, request)
    settle(model._networks._network)  # type: ignore[attr-defined]
    assert model._networks._network._made  # type: ignore[attr-defined]
    for _ in range(2):
        picture = draw_alone(model, request)
        assert np.abs(picture - draw_alone(plain, request)).max() <= TOLERANCE
