"""Safety checkers with random weights, as pipelines of Stable Diffusion bring them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

# More than any similarity to a concept, and less.
NEVER, ALWAYS = 2.0, -2.0
_SIDE = 32


def save_checker(folder: Path, threshold: float) -> Path:
    """Gives a pipeline's folder a checker, which blocks pictures that are more like its first concept than that."""
    checker = random_checker()
    checker.concept_embeds_weights[0] = threshold
    checker.save_pretrained(folder / "safety_checker")
    size = {"size": {"shortest_edge": _SIDE}, "crop_size": {"height": _SIDE, "width": _SIDE}}
    CLIPImageProcessor(**size).save_pretrained(folder / "feature_extractor")
    path = folder / "model_index.json"
    index = json.loads(path.read_text()) | {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True,
    }
    path.write_text(json.dumps(index))
    return folder


def random_checker() -> Any:
    """A checker that blocks nothing."""
    torch.manual_seed(7)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": _SIDE,
        "patch_size": 8,
    }
    checker: Any = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
    for weights in checker.parameters():
        # As it is initialised, it takes all pictures for much the same.
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=0.2)
    for weights in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
        torch.nn.init.constant_(weights, NEVER)
    return checker
