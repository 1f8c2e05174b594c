"""Stage 3: the decoder alone, made deeper and taught for longer, with an adversary at the end.

Everything else stands on the encoder's latents, so the encoder stays as stage 2 left it; the decoder may change at any
time, and pictures are no crisper than it. The differences of stage 2 alone leave edges soft, since between two places
for an edge their best answer is the blurred mean. The adversary takes such answers apart from the artwork
(hinge loss, arXiv:1705.02894), and its features are compared besides (arXiv:1711.09020).

`python -m training.decoder FOLDER` does the same for a pipeline that was exported earlier, and leaves its U-Net alone.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from training import autoencoder, machine
from training.autoencoder import NOISE, picture_loss, to_model
from training.feed import feeds
from training.painter import painter
from training.paths import state_dir, with_environment
from training.replicas import Replicas
from training.running import Log, Stop, Stopped, decayed, load, save

BLOCKS = (6, 5, 2, 1)  # residual blocks at sides of 16, 32, 64 and 128
STEPS, WARMUP, RATE = 2700, 100, 4e-4
BATCH = {"cpu": 4, "cuda": 32}  # a replica's
ADVERSARY_FROM = 0.3  # of the steps
ADVERSARY_RATE, ADVERSARY_WEIGHT, FEATURES_WEIGHT = 4e-4, 0.06, 0.6
CHECKPOINT = "decoder.pt"


class Adversary(nn.Module):
    """Pictures (batch, 3, 128, 128) to features, the last of them logits of 16x16 places: artwork or not."""

    def __init__(self) -> None:
        super().__init__()
        plan = [(3, 32, 4, 2), (32, 64, 4, 2), (64, 96, 4, 2), (96, 96, 3, 1)]
        self.body = nn.ModuleList(
            spectral_norm(nn.Conv2d(wide_in, wide_out, kernel, stride, 1))
            for wide_in, wide_out, kernel, stride in plan
        )
        self.last = spectral_norm(nn.Conv2d(96, 1, 3, 1, 1))

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """The features of each layer and the logits."""
        features = []
        for layer in self.body:
            pictures = functional.leaky_relu(layer(pictures), 0.2)
            features.append(pictures)
        return [*features, self.last(pictures)]


def deepened(former: AutoencoderTiny) -> AutoencoderTiny:
    """The same encoder, and a deeper decoder that begins by drawing what the former one does."""
    model = autoencoder.build(BLOCKS, former.config.latent_channels)
    model.register_to_config(scaling_factor=former.config.scaling_factor)
    model.encoder.load_state_dict(former.encoder.state_dict())
    theirs = iter(former.decoder.layers)
    their = next(theirs, None)
    for mine in model.decoder.layers:
        if type(mine) is type(their):
            mine.load_state_dict(their.state_dict())
            their = next(theirs, None)
        else:
            # A block more, where the former decoder goes on to the next side: at first it changes nothing.
            nn.init.zeros_(mine.conv[4].weight)
    return model


class Training:
    """Decoder, adversary, data and optimisers of one run over `steps`."""

    def __init__(self, former: AutoencoderTiny, checkpoint: Path, steps: int) -> None:
        torch.manual_seed(2)
        self.checkpoint = checkpoint
        self.steps = steps
        self.model = deepened(former).to(machine.device())
        self.model.encoder.eval().requires_grad_(False)
        self.adversary = Adversary().to(machine.device())
        self.decoders = Replicas(self.model.decoder)
        self.adversaries = Replicas(self.adversary)
        self.optimiser = torch.optim.AdamW(
            self.model.decoder.parameters(), RATE, (0.9, 0.99), weight_decay=1e-4
        )
        self.opposing = torch.optim.AdamW(
            self.adversary.parameters(), ADVERSARY_RATE, (0.5, 0.9), weight_decay=0.0
        )
        self.drawn: list[Any] = [None] * machine.replicas()
        self.step = 0

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return
        state = load(self.checkpoint)
        self.model.decoder.load_state_dict(state["decoder"])
        self.adversary.load_state_dict(state["adversary"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.opposing.load_state_dict(state["opposing"])
        self.step = state["step"]

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "decoder": self.model.decoder.state_dict(),
            "adversary": self.adversary.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "opposing": self.opposing.state_dict(),
            "step": self.step,
        }
        save(self.checkpoint, state)

    def open(self) -> None:
        """Start the feeds of pictures."""
        self.feeds = feeds(machine.sized(BATCH), f"decoder/{self.step}")
        self.chances = machine.generators(self.step)

    def loss(self, module: nn.Module, rank: int) -> torch.Tensor:
        """The decoder's over one replica's batch."""
        true = to_model(painter().paint(next(self.feeds[rank])[0], self.chances[rank]))
        with torch.no_grad():
            latents = self.model.encode(true).latents
        drawn = module(latents + torch.randn_like(latents) * NOISE)
        value = picture_loss(drawn, true)
        if self.opposed:
            adversary = self.adversaries.modules[rank]
            seen = adversary(drawn)
            with torch.no_grad():
                wanted = adversary(true)
            pairs = zip(seen[:-1], wanted[:-1], strict=True)
            features = torch.stack([(a - b).abs().mean() for a, b in pairs]).sum()
            value = value + FEATURES_WEIGHT * features - ADVERSARY_WEIGHT * seen[-1].mean()
            self.drawn[rank] = (drawn.detach(), true)
        return value

    def opposing_loss(self, module: nn.Module, rank: int) -> torch.Tensor:
        """The adversary's over what the decoder has just drawn."""
        drawn, true = self.drawn[rank]
        return (
            functional.relu(1 - module(true)[-1]).mean()
            + functional.relu(1 + module(drawn)[-1]).mean()
        )

    @property
    def opposed(self) -> bool:
        return self.step >= ADVERSARY_FROM * self.steps

    def advance(self) -> torch.Tensor:
        """One step of the decoder, and of the adversary once there is one; returns the decoder's loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = decayed(RATE, self.step, self.steps, WARMUP)
        values = self.decoders.backward(self.loss)
        nn.utils.clip_grad_norm_(self.model.decoder.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.opposed:
            # What the decoder's loss has left in the adversary is not its own.
            for module in self.adversaries.modules:
                module.zero_grad(set_to_none=True)
            self.adversaries.backward(self.opposing_loss)
            self.opposing.step()
            self.opposing.zero_grad(set_to_none=True)
        self.step += 1
        return torch.stack(values).mean()


def train(stop: Stop) -> None:
    """Train to the end, or to a checkpoint when asked to stop."""
    _run(Training(autoencoder.trained(), state_dir() / CHECKPOINT, STEPS), stop)


def _run(training: Training, stop: Stop) -> None:
    training.restore()
    if training.step >= training.steps:
        return
    log = Log("decoder")
    training.open()
    check = autoencoder.pictures(48, seed=0)
    losses: list[torch.Tensor] = []
    while training.step < training.steps:
        losses.append(training.advance())
        if training.step % 50 == 0:
            log.write(step=training.step, loss=torch.stack(losses).mean().item())
            losses.clear()
        if training.step % 250 == 0 or training.step == training.steps or stop.asked:
            training.save()
            log.write(step=training.step, psnr=autoencoder.psnr(training.model, check))
        if stop.asked:
            raise Stopped


def trained() -> AutoencoderTiny:
    """The autoencoder with this decoder, frozen."""
    model = deepened(autoencoder.trained())
    model.decoder.load_state_dict(load(state_dir() / CHECKPOINT)["decoder"])
    return model.eval().requires_grad_(False)


def main() -> int:
    """Give an exported pipeline a new decoder; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a pipeline, whose vae is replaced")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    place = arguments.folder / "vae"
    former = AutoencoderTiny.from_pretrained(place)
    (state_dir() / "trainer.pid").write_text(f"{os.getpid()}\n")
    checkpoint = state_dir() / f"decoder-{arguments.folder.resolve().name}.pt"
    training = Training(former, checkpoint, arguments.steps)
    try:
        _run(training, Stop())
    except Stopped:
        print("stopped; the next run goes on from the checkpoint")
        return 0
    training.model.cpu().half().save_pretrained(place)
    return 0


if __name__ == "__main__":
    with_environment("training.decoder")
    sys.exit(main())
