"""`python -m training.quantization KIND[:RUNTIME] ...`: what weights in fewer bits cost and spare the embedded model.

KIND is T2I_QUANTIZE, RUNTIME is T2I_RUNTIME: `int8:torch` is what torch executes. Full precision with both runtimes is
drawn besides.

Draws the judge's questions with the server's engine, as `training.approximations` does, and prints a table. `weights`
are the bytes of the model's weights; `lost` and `sure` are as there; `differs` is the mean difference, of 255, from the
pictures of full precision. Then each draws the same few pictures by turns, and a second table has the seconds of a
processor that one picture takes, alone and in a batch, as the median of all rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from text2image.core.messages import Quality
from text2image.core.settings import EMBEDDED_MODEL, Settings
from text2image.engine.models.contract import Model
from text2image.engine.models.inspection import inspect_model
from text2image.engine.models.loading import load_model
from training.approximations import BATCH, draw, judged
from training.paths import with_environment
from training.prompts import questions

PLAIN = ("none:openvino", "none:torch")


def settings_of(choice: str) -> Settings:
    """The settings of KIND:RUNTIME."""
    kind, _, runtime = choice.partition(":")
    return Settings(model=EMBEDDED_MODEL, quantize=kind, runtime=runtime or "auto")


def adherence(choices: Sequence[str], models: dict[str, Model], every: int) -> None:
    """Prints the first table."""
    asked = questions()[::every]
    prompts = [question.prompt for question in asked]
    print(f"| weights in | MB | met of {len(asked)} | lost, of 100 | sure | differs |")
    print("|---|---|---|---|---|---|")
    whole: tuple[int, torch.Tensor] | None = None
    for choice in choices:
        pictures, _ = draw(models[choice], prompts, Quality.EXACT)
        hits, sure = judged(pictures, asked)
        whole = whole or (hits, pictures)
        lost = 100 * (whole[0] - hits) / len(asked)
        differs = float((pictures - whole[1]).abs().mean()) * 127.5
        megabytes = inspect_model(settings_of(choice), 0)[1] / 1e6
        row = f"{megabytes:.1f} | {hits} | {lost:.1f} | {sure:.2f} | {differs:.1f}"
        print(f"| {choice} | {row} |", flush=True)


def speed(choices: Sequence[str], models: dict[str, Model], rounds: int) -> None:
    """Prints the second table."""
    prompts = [question.prompt for question in questions()[:BATCH]]
    seconds: dict[tuple[str, int], list[float]] = {}
    # The first round pays for what is set up once.
    for number in range(rounds + 1):
        for choice in choices:
            for count in (1, BATCH):
                started = time.process_time()
                draw(models[choice], prompts[:count], Quality.EXACT)
                each = (time.process_time() - started) / count
                if number:
                    seconds.setdefault((choice, count), []).append(each)
    print(f"\n| weights in | lone picture, s | of {BATCH}, s |\n|---|---|---|")
    for choice in choices:
        alone, together = (statistics.median(seconds[choice, count]) for count in (1, BATCH))
        print(f"| {choice} | {alone:.2f} | {together:.2f} |", flush=True)


def main() -> int:
    """Print both tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("choices", nargs="+", metavar="KIND[:RUNTIME]", help="as in int8:torch")
    parser.add_argument("--every", type=int, default=1, help="take one question of so many")
    parser.add_argument("--rounds", type=int, default=5, help="of the measured pictures")
    arguments = parser.parse_args()
    choices = (*PLAIN, *arguments.choices)
    models = {choice: load_model(settings_of(choice), 0, lambda detail: None) for choice in choices}
    speed(choices, models, arguments.rounds)
    adherence(choices, models, arguments.every)
    return 0


if __name__ == "__main__":
    with_environment("training.quantization")
    sys.exit(main())
