"""The committed weights draw what they are asked for: catches a broken export and a mixed-up batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from training.artwork import selection
from training.judge import BEHIND, COMMITTED, Judge
from training.vocabulary import BACKGROUNDS

PIPELINE = Path(__file__).parents[2] / "models" / "embedded"
# Every picture of the batch has a background of its own, so a swapped pair cannot pass.
ASKED = {
    "a cat": "blue",
    "a strawberry": "yellow",
    "a penguin": "pink",
    "a star": "gray",
    "a hamburger": "green",
    "a skull": "black",
    "a house": "orange",
    "a fish": "purple",
    "a crown": "red",
    "a robot": "cyan",
}
# In sRGB, 0 to 255; the two nearest backgrounds, orange and yellow, lie 79 apart.
NEAR = 39.0


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """One batch of all prompts, each picture (128, 128, 3), 0 to 255."""
    pipeline = StableDiffusionPipeline.from_pretrained(PIPELINE, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [
        f"{thing} on {_article(colour)} {colour} background" for thing, colour in ASKED.items()
    ]
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    pictures = pipeline(
        prompts, num_inference_steps=20, guidance_scale=3.0, generator=noise, output_type="np"
    ).images
    return dict(zip(ASKED, pictures * 255, strict=True))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _corners(picture: np.ndarray) -> np.ndarray:
    """The median colour of the four corners, 12 pixels each way."""
    parts = [picture[y : y + 12, x : x + 12].reshape(-1, 3) for y in (0, -13) for x in (0, -13)]
    return np.asarray(np.median(np.concatenate(parts), 0))


@pytest.mark.parametrize("thing", ASKED)
def test_the_background_has_the_colour_that_was_asked_for(
    drawn: dict[str, np.ndarray], thing: str
) -> None:
    corners = _corners(drawn[thing])
    distance = {name: np.linalg.norm(corners - rgb) for name, rgb in BACKGROUNDS.items()}
    assert min(distance, key=lambda name: distance[name]) == ASKED[thing]
    assert distance[ASKED[thing]] < NEAR


@torch.inference_mode()
def test_the_judge_recognises_every_object_and_background(drawn: dict[str, np.ndarray]) -> None:
    judge = Judge()
    judge.load_state_dict(load_file(COMMITTED))
    pictures = torch.from_numpy(np.stack(list(drawn.values()))).permute(0, 3, 1, 2) / 127.5 - 1
    names, _, behind = judge.eval()(pictures)
    objects = [selection()[index][1][0] for index in names.argmax(1).tolist()]
    assert [f"a {name}" for name in objects] == list(ASKED)
    assert [BEHIND[index] for index in behind.argmax(1).tolist()] == list(ASKED.values())
