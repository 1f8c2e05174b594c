"""`python -m training.style`: an adapter (LoRA) that has the embedded model draw blueprints, in minutes of a core.

The model draws its own examples: its pictures, redrawn as white lines on blue paper, under the prompts that they were
drawn from. So nothing but the style is new, and that is what the adapter learns.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from text2image.core.settings import MODELS
from text2image.engine.models.loading import EMBEDDED_PATH
from training import unet
from training.prompts import SHEET, questions

NAME = "blueprint"
TARGET = MODELS / "loras"
# Ranks of attention's matrices, and of all convolutions.
RANK, CONV_RANK = 8, 4
EXAMPLES, BATCH, RATE = 192, 16, 2e-3
PAPER, INK = (0.09, 0.23, 0.53), (0.93, 0.97, 1.0)


def as_blueprint(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures (count, 3, h, w) in 0 to 1 as lines where their colours change, on paper."""
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    across = F.pad(soft[..., :, 2:] - soft[..., :, :-2], (1, 1))
    down = F.pad(soft[..., 2:, :] - soft[..., :-2, :], (0, 0, 1, 1))
    edges = (across.square() + down.square()).sum(1, keepdim=True).sqrt()
    lines = ((edges - 0.08) * 4).clamp(0, 1)
    # What is dark in the picture is hatched a little lighter than the paper.
    tone = 0.18 * (1 - pictures.mean(1, keepdim=True))
    paper, ink = (torch.tensor(each).view(1, 3, 1, 1) for each in (PAPER, INK))
    return paper + (ink - paper) * torch.maximum(lines, tone)


@torch.inference_mode()
def examples(pipeline: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of redrawn pictures, and the embeddings of their prompts."""
    prompts = [*SHEET, *(question.prompt for question in questions())]
    prompts = random.Random(0).sample(prompts, count)
    latents, embeddings = [], []
    for first in range(0, count, BATCH):
        asked = prompts[first : first + BATCH]
        random_ = torch.Generator().manual_seed(first)
        drawn = pipeline(
            asked, num_inference_steps=12, guidance_scale=3.0, generator=random_, output_type="pt"
        ).images
        redrawn = as_blueprint(drawn) * 2 - 1
        latents.append(pipeline.vae.encode(redrawn).latents * pipeline.vae.config.scaling_factor)
        embeddings.append(pipeline.encode_prompt(asked, "cpu", 1, False)[0])
    return torch.cat(latents), torch.cat(embeddings)


def train(pipeline: Any, steps: int) -> None:
    """Adds the adapter to the pipeline's U-Net, and trains it."""
    clean, embeddings = (each.clone() for each in examples(pipeline, EXAMPLES))
    nothing = pipeline.encode_prompt("", "cpu", 1, False)[0].detach()
    network, noising = pipeline.unet, unet.Noising()
    network.requires_grad_(False)
    network.add_adapter(
        LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_out"],
            rank_pattern=dict.fromkeys(("conv1", "conv2", "conv_out"), CONV_RANK),
            alpha_pattern=dict.fromkeys(("conv1", "conv2", "conv_out"), CONV_RANK),
        ),
        NAME,
    )
    trained = [each for each in network.parameters() if each.requires_grad]
    optimiser = torch.optim.AdamW(trained, RATE, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        chosen = torch.randint(len(clean), (BATCH,))
        t = ((torch.arange(BATCH) + torch.rand(BATCH)) / BATCH * unet.STEPS).long()
        noisy, target = noising.apply(clean[chosen], torch.randn(BATCH, *clean.shape[1:]), t)
        # Some without a prompt, as guidance asks the network.
        words = torch.where(torch.rand(BATCH, 1, 1) < 0.1, nothing, embeddings[chosen])
        errors = (network(noisy, t, words, return_dict=False)[0] - target).square().mean((1, 2, 3))
        loss = (errors * noising.weight[t]).mean()
        loss.backward()
        optimiser.step()
        falling.step()
        optimiser.zero_grad()
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def write(pipeline: Any, folder: Path) -> Path:
    """Writes the adapter in half precision, with what its metadata should say."""
    state = get_peft_model_state_dict(pipeline.unet, adapter_name=NAME)
    StableDiffusionPipeline.save_lora_weights(folder, state, weight_name=f"{NAME}.safetensors")
    path = folder / f"{NAME}.safetensors"
    metadata = {
        "format": "pt",
        "modelspec.title": "Blueprint",
        "modelspec.architecture": "text2image-embedded/lora",
        "modelspec.description": "White lines on blue paper.",
        "modelspec.license": "MIT",
    }
    half = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(half, path, metadata)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--folder", type=Path, default=TARGET)
    given = parser.parse_args()
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline.from_pretrained(
        EMBEDDED_PATH, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    train(pipeline, given.steps)
    given.folder.mkdir(parents=True, exist_ok=True)
    path = write(pipeline, given.folder)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
