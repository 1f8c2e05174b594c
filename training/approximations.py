"""`python -m training.approximations INTERVAL[:N] ...`: what fast pictures lose, by what they leave out.

INTERVAL is T2I_GUIDANCE_INTERVAL, N is T2I_DEEP_CACHE: `0-1:2` is guided everywhere, and every second pass is whole.

Draws the judge's questions with the server's engine, exactly and then as fast pictures, from the same seeds, and prints
a table in points of a hundred. A question is met when all that it asks for is recognised: the object as the judge's
first guess, its colour, its background; of two objects each half's. `sure` is the mean probability, in percent,
that the judge gives the objects; `differs` the mean difference from the exact pictures, of 255; `work` what the network
computes, as a share of the exact pictures'.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from text2image.core.messages import Quality, StreamOptions
from text2image.core.settings import EMBEDDED_MODEL, Settings
from text2image.engine.models.contract import Model, pixels_of
from text2image.engine.models.loading import load_model
from text2image.engine.sample import Generation, Sample
from text2image.engine.warmup import usual_request
from training import judge as court
from training.paths import with_environment
from training.prompts import Question, questions

BATCH, SEED = 8, 1000


def draw(model: Model, prompts: Sequence[str], quality: Quality) -> tuple[torch.Tensor, float]:
    """Pictures (count, 3, 128, 128) in -1..1, picture i from `SEED + i`, and the work they took in plain rows."""
    pictures, work = [], 0.0
    for first in range(0, len(prompts), BATCH):
        samples = [
            _sample(model, prompt, SEED + first + place, quality)
            for place, prompt in enumerate(prompts[first : first + BATCH])
        ]
        model.encode(samples)
        model.start(samples)
        while not samples[0].done:
            work += sum(sample.work for sample in samples)
            model.advance(samples, model.predict(samples))
        for sample in samples:
            pixels = pixels_of(model.decode([sample])[0])
            flat = np.frombuffer(pixels.rgb, np.uint8).reshape(pixels.height, pixels.width, 3)
            pictures.append(torch.tensor(flat).movedim(-1, 0) / 127.5 - 1)
    return torch.stack(pictures), work


def _sample(model: Model, prompt: str, seed: int, quality: Quality) -> Sample:
    request = replace(usual_request(model.info), prompt=prompt, seed=seed, quality=quality)
    plan = model.plan(request)
    return Generation.create(request, StreamOptions(), plan=plan, now=0.0, deadline=0.0).samples[0]


@torch.inference_mode()
def judged(pictures: torch.Tensor, asked: Sequence[Question]) -> tuple[int, float]:
    """How many of the questions the pictures meet, and the mean probability of the objects in percent."""
    judge = court.trained()
    whole, left, right = (
        [answer.cpu() for answer in judge(part)]
        for part in (
            pictures,
            court.half(pictures, right=False),
            court.half(pictures, right=True),
        )
    )
    met, sure = 0, 0.0
    for place, question in enumerate(asked):
        scene = question.scene
        parts = [whole[0]] if len(scene.objects) == 1 else [left[0], right[0]]
        named = [
            part[place].softmax(0)[each] for part, each in zip(parts, scene.objects, strict=True)
        ]
        sure += 100 * float(sum(named)) / len(named) / len(asked)
        met += (
            all(
                int(part[place].argmax()) == each
                for part, each in zip(parts, scene.objects, strict=True)
            )
            # A red apple has "its own" colour too: the question is which of the eleven it is nearest to.
            and scene.colour in (None, court.PAINT[int(whole[1][place, 1:].argmax()) + 1])
            and scene.background in (None, court.BEHIND[int(whole[2][place].argmax())])
        )
    return met, sure


def main() -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("choices", nargs="+", metavar="INTERVAL[:N]", help="as in 0.1-0.6 or 0-1:2")
    parser.add_argument("--every", type=int, default=1, help="take one question of so many")
    arguments = parser.parse_args()
    asked = questions()[:: arguments.every]
    prompts = [question.prompt for question in asked]
    print(
        f"| guided : whole | met of {len(asked)} | lost, of 100 | sure | differs | work | seconds |"
    )
    print("|---|---|---|---|---|---|---|")
    exact: tuple[int, float, torch.Tensor] | None = None
    for choice in ("0-1", *arguments.choices):
        interval, _, every = choice.partition(":")
        settings = Settings(
            model=EMBEDDED_MODEL, guidance_interval=interval, deep_cache=int(every or 1)
        )
        model = load_model(settings, 0, lambda detail: None)
        started = time.process_time()
        pictures, work = draw(model, prompts, Quality.FAST)
        seconds = time.process_time() - started
        hits, sure = judged(pictures, asked)
        exact = exact or (hits, work, pictures)
        lost = 100 * (exact[0] - hits) / len(asked)
        share = work / exact[1]
        differs = float((pictures - exact[2]).abs().mean()) * 127.5
        row = f"{hits} | {lost:.1f} | {sure:.2f} | {differs:.1f} | {share:.2f} | {seconds:.1f}"
        print(f"| {choice} | {row} |", flush=True)
    return 0


if __name__ == "__main__":
    with_environment("training.approximations")
    sys.exit(main())
