"""The networks alone: a step by its rows, as it is and as the server compiles it; and decoding."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from loadtests.gpu import models
from loadtests.gpu.plan import Plan
from loadtests.gpu.record import Record
from text2image.engine import devices
from text2image.engine.runtimes import buckets

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
            for rows in plan.rows:
                given = models.inputs(unet, rows)
                _note(
                    record,
                    f"eager {name}",
                    rows,
                    lambda u=unet, g=given: u(**g, return_dict=False),
                    plan.repeats,
                )
    with record.part("decoding"):
        _decode(plan, record, kind, unet.config.sample_size)


@torch.inference_mode()
def compiled(plan: Plan, record: Record, kind: str) -> None:
    """The same, compiled for one number of rows after the other, with the seconds that this takes."""
    prepare()
    buckets.BACKEND = plan.backend
    name, device = plan.dtypes[0], torch.device(plan.device)
    unet = models.network(kind, plan.size, plan.device, getattr(torch, name))
    pool = devices.graph_pool(device)
    for rows in plan.compiled_rows:
        with record.part(f"{rows} rows"):
            given = models.tensors_of(models.inputs(unet, rows))
            started = time.perf_counter()
            with devices.beside(device):
                row = [each[:1] for each in given]
                bucket = buckets.Bucket(models.forward_of(unet), row, rows, pool)
            seconds = time.perf_counter() - started
            _note(record, f"compiled {name}", rows, lambda b=bucket, g=given: b(*g), plan.repeats)
            record.figures[f"compiled {name}"][str(rows)]["compiling"] = seconds


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
