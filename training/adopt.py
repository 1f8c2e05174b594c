"""`python -m training.adopt FOLDER`: go on from an exported pipeline instead of from nothing.

Its weights become the checkpoints of all stages. Encoder, decoder and text encoder count as finished; with
`--text-again` the text encoder goes through its stage once more, for objects and wordings that came later.
The U-Net begins a new trunk.
"""

import argparse
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from training import autoencoder, decoder, diffusion, machine, text, tokenizer
from training.paths import state_dir, with_environment
from training.running import save


def _adopt_text(folder: Path, again: bool) -> None:
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    words.save_pretrained(tokenizer.folder())
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    torch.manual_seed(0)
    reader = text.Reader(encoder, words.eos_token_id)
    state = {"reader": reader.state_dict(), "optimiser": text.optimiser_of(reader).state_dict()}
    save(state_dir() / text.CHECKPOINT, state | {"step": 0 if again else machine.sized(text.STEPS)})


def _adopt_autoencoder(folder: Path) -> None:
    theirs = AutoencoderTiny.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    # The shallow decoder of stage 2 has done its work; what draws is stage 3's.
    shallow = autoencoder.build()
    shallow.encoder.load_state_dict(theirs.encoder.state_dict())
    optimiser = torch.optim.AdamW(shallow.parameters())
    scale = float(theirs.config.scaling_factor)
    autoencoder.save_checkpoint(shallow, optimiser, autoencoder.STEPS, scale)
    deep = decoder.Training(shallow, state_dir() / decoder.CHECKPOINT, decoder.STEPS)
    deep.model.decoder.load_state_dict(theirs.decoder.state_dict())
    deep.step = decoder.STEPS
    deep.save()


def _adopt_unet(folder: Path) -> None:
    theirs = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    training = diffusion.Training(state_dir() / diffusion.TRUNK)
    take_unet(training.model, theirs)
    for mine, parameter in zip(training.average, training.model.parameters(), strict=True):
        mine.copy_(parameter.detach())
    training.save()


def take_unet(model: UNet2DConditionModel, theirs: UNet2DConditionModel) -> None:
    """Copy all weights; only the pooled prompt, which is silent at first, may be new.

    Raises ValueError if the two are of different designs.
    """
    weights = theirs.state_dict()
    pooled = {k: v for k, v in model.state_dict().items() if k.startswith("add_embedding.")}
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in (pooled | weights).items()} != wanted:
        raise ValueError("the pipeline's U-Net is of another design than unet.build() makes")
    model.load_state_dict(pooled | weights)


def main() -> int:
    """Write the checkpoints; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a pipeline that `make model` exported")
    parser.add_argument("--text-again", action="store_true", help="teach the text encoder anew")
    arguments = parser.parse_args()
    if any((state_dir() / name).exists() for name in (text.CHECKPOINT, diffusion.TRUNK)):
        print(f"{state_dir()} holds a training already; move it away or set T2I_TRAINING_DIR")
        return 1
    _adopt_text(arguments.folder, arguments.text_again)
    _adopt_autoencoder(arguments.folder)
    _adopt_unet(arguments.folder)
    print(f"{state_dir()}: go on with `make train`")
    return 0


if __name__ == "__main__":
    with_environment("training.adopt")
    sys.exit(main())
