"""`python -m training.export FOLDER`: the trained parts as one diffusers pipeline in half precision."""

import argparse
import shutil
import sys
from pathlib import Path

import torch

from training.paths import TRAINING, with_environment


def licences(folder: Path) -> None:
    """Copy the licences and the notice of everything the weights were made from."""
    from training.artwork import fetch

    target = folder / "licences"
    target.mkdir(parents=True, exist_ok=True)
    for part, name in (("names", "unicode-emoji-json"), ("keywords", "emojilib")):
        shutil.copyfile(fetch(part) / "LICENSE", target / f"{name}.txt")
    # The package declares MIT but carries no licence file; Microsoft's own text is kept here.
    shutil.copyfile(TRAINING / "licences" / "fluentui-emoji.txt", target / "fluentui-emoji.txt")
    shutil.copyfile(TRAINING / "licences" / "NOTICE.md", target / "NOTICE.md")


def export(folder: Path, checkpoint: str) -> None:
    """Write pipeline, card and licences."""
    from diffusers import StableDiffusionPipeline

    from training import decoder, diffusion, text, unet

    tokenizer, encoder = text.trained()
    pipeline = StableDiffusionPipeline(
        vae=decoder.trained(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=diffusion.averaged(checkpoint),
        scheduler=unet.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    for weights in folder.rglob("*.safetensors"):
        # They are written for their owner alone, and a server may run as somebody else.
        weights.chmod(0o644)
    licences(folder)
    shutil.copyfile(TRAINING / "card.md", folder / "README.md")


def main() -> int:
    """Export one checkpoint; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", default="branch.pt", help="a file in the state folder")
    arguments = parser.parse_args()
    export(arguments.folder, arguments.checkpoint)
    size = sum(f.stat().st_size for f in arguments.folder.rglob("*.safetensors"))
    print(f"{arguments.folder}: {size / 1e6:.1f} MB of weights")
    return 0


if __name__ == "__main__":
    with_environment("training.export")
    sys.exit(main())
