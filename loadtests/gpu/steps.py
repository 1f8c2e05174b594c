"""The networks alone: a step by its rows, as it is, compiled, and as CUDA graphs; and decoding."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from loadtests.gpu import models
from loadtests.gpu.plan import Plan
from loadtests.gpu.record import Record

WARM_UP = 2
PICTURES = (1, 4)


def prepare() -> None:
    """As the server sets torch up on a card."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = True


@torch.inference_mode()
def eager(plan: Plan, record: Record, kind: str) -> None:
    """Steps in each precision, and decoding in the first."""
    prepare()
    # One is enough for the larger network.
    for name in plan.dtypes if kind == "sd15" else plan.dtypes[:1]:
        with record.part(name):
            unet = models.network(kind, plan.size, plan.device, getattr(torch, name))
            _measure(record, f"eager {name}", unet, unet, plan.rows, plan.repeats)
    with record.part("decoding"):
        _decode(plan, record, kind, unet.config.sample_size)


@torch.inference_mode()
def compiled(plan: Plan, record: Record, kind: str) -> None:
    """The same by torch.compile: once for any rows, then as CUDA graphs for some."""
    prepare()
    name = plan.dtypes[0]
    unet = models.network(kind, plan.size, plan.device, getattr(torch, name))
    with record.part("any rows"):
        forward = torch.compile(unet, dynamic=True, backend=plan.backend)
        # A single row is a case of its own to the compiler; it comes last, when there is time.
        rows = (*plan.rows[1:], plan.rows[0])
        _measure(record, f"compiled {name}", forward, unet, rows, plan.repeats)
    with record.part("graphs"):
        options = {"mode": "reduce-overhead"} if plan.backend == "inductor" else {}
        forward = torch.compile(unet, dynamic=False, backend=plan.backend, **options)
        _measure(record, f"graphs {name}", forward, unet, plan.graph_rows, plan.repeats)


def _measure(
    record: Record,
    name: str,
    forward: Callable[..., Any],
    unet: Any,
    rows: tuple[int, ...],
    repeats: int,
) -> None:
    for number in rows:
        given = models.inputs(unet, number)
        _note(record, name, number, lambda g=given: forward(**g, return_dict=False), repeats)


def _decode(plan: Plan, record: Record, kind: str, side: int) -> None:
    dtype = getattr(torch, plan.dtypes[0])
    vae = models.autoencoder(kind, plan.size, plan.device, dtype)
    for number in PICTURES:
        latents = torch.randn(number, 4, side, side, device=plan.device, dtype=dtype)
        given = latents.contiguous(memory_format=torch.channels_last)
        _note(
            record,
            f"decoding {plan.dtypes[0]}",
            number,
            lambda g=given: vae.decode(g, return_dict=False),
            plan.repeats,
        )


def _note(record: Record, name: str, number: int, work: Callable[[], Any], repeats: int) -> None:
    """Median and least milliseconds, those of the first call, and the most memory in use, in MiB."""
    on_card = torch.cuda.is_available()
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    first = _seconds(work)
    for _ in range(WARM_UP - 1):
        _seconds(work)
    times = [_seconds(work) for _ in range(repeats)]
    figures = {
        "ms": 1000 * statistics.median(times),
        "least": 1000 * min(times),
        "first": 1000 * first,
        "peak": torch.cuda.max_memory_allocated() / 2**20 if on_card else None,
    }
    record.figures.setdefault(name, {})[str(number)] = figures
    record.save()
    print(f"{name}, {number}: {figures['ms']:.2f} ms, first {figures['first']:.0f} ms", flush=True)


def _seconds(work: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
