"""What adapters cost: passes of the embedded U-Net with and without, by turns, in the CPU time of one thread.

`python -m loadtests.adapters TURNS` prints the figures as JSON; the section of the benchmarks has it run in a process
of its own, since the number of threads is a process's.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtests.sections import Bench, Figures, Section, Yardstick

RANK = 16
ROWS, ADAPTERS = 16, 4
# Passes of a turn, with and without.
PASSES = 3
AT_MOST = 1.25


async def measure(bench: Bench) -> Figures:
    turns = str(3 * bench.plan.turns)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtests.adapters", turns, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    figures: Figures = json.loads(printed.splitlines()[-1])
    return figures


def text(figures: Figures) -> str:
    rows = "\n".join(
        f"| {rows} | {adapters} | {_written(figures[f'{rows} {adapters}'])} |"
        for rows, adapters in ((1, 1), (ROWS, 1), (ROWS, ADAPTERS))
    )
    return (
        "CPU time of a pass of the embedded U-Net by torch, in one thread, in which every row has one of so many "
        f"adapters of rank {RANK}, against one without. Median of {figures['turns']} turns, lowest to highest.\n\n"
        f"| rows | adapters | with ÷ without |\n|---|---|---|\n{rows}"
    )


def yardsticks(figures: Figures) -> list[Yardstick]:
    name = f"{ROWS} rows with {ADAPTERS} different adapters ÷ {ROWS} rows without"
    middle = statistics.median(figures[f"{ROWS} {ADAPTERS}"])
    return [(name, f"{middle:.2f}", f"≤ {AT_MOST}")]


def _written(ratios: list[float]) -> str:
    middle = statistics.median(ratios)
    return f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


ADAPTERS_COST = Section("adapters", "Adapters", measure, text, yardsticks)


def _model(folder: Path) -> Any:
    """The embedded model by torch in this thread, with adapters of attention's layers in memory."""
    from diffusers import StableDiffusionPipeline

    from tests import loras
    from text2image.core.messages import LoraWeight
    from text2image.core.settings import Settings
    from text2image.engine.models.loading import EMBEDDED_PATH, load_model

    pipeline = StableDiffusionPipeline.from_pretrained(
        EMBEDDED_PATH, safety_checker=None, requires_safety_checker=False
    )
    for seed in range(ADAPTERS):
        file = loras.invent(pipeline, rank=RANK, seed=seed, parts=("unet",))
        loras.save(folder, str(seed), file)
    settings = Settings(model="embedded", runtime="torch", threads=1, device="cpu")
    model: Any = load_model(settings.model_copy(update={"loras": folder}), 0, lambda detail: None)
    for info in model.info.loras:
        lora = LoraWeight(info.name, 1.0, info.hash)
        model.adapters.put(lora, model.adapters.read(lora))
    return model


def _samples(model: Any, rows: int, adapters: int) -> list[Any]:
    from text2image.core.messages import LoraWeight, StreamOptions
    from text2image.engine.sample import Generation
    from text2image.engine.warmup import usual_request

    samples = []
    for row in range(rows):
        info = model.info.loras[row % adapters] if adapters else None
        named = (LoraWeight(info.name, 0.8, info.hash),) if info else ()
        usual = usual_request(model.info)
        request = replace(usual, prompt="a cat", guidance_scale=1.0, seed=row, loras=named)
        plan = model.plan(request)
        generation = Generation.create(request, StreamOptions(), plan=plan, now=0.0, deadline=0.0)
        samples += generation.samples
    model.encode(samples)
    model.start(samples)
    return samples


def _seconds(model: Any, samples: list[Any]) -> float:
    started = time.process_time()
    for _ in range(PASSES):
        model.predict(samples)
    return time.process_time() - started


def main() -> None:
    turns = int(sys.argv[1])
    figures: Figures = {"turns": turns}
    with tempfile.TemporaryDirectory() as folder:
        model = _model(Path(folder))
    for rows, adapters in ((1, 1), (ROWS, 1), (ROWS, ADAPTERS)):
        plain, adapted = _samples(model, rows, 0), _samples(model, rows, adapters)
        ratios = []
        for _ in range(turns + 1):
            without = _seconds(model, plain)
            ratios.append(_seconds(model, adapted) / without)
        # The first turn pays for what is set up once.
        figures[f"{rows} {adapters}"] = ratios[1:]
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
