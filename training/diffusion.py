"""Stage 4: the U-Net, by a warm-up, a long stable rate, and short decays that branch off.

The trunk (stable rate) can go on for ever and is what later runs resume. Most of the visible sharpness
appears while the rate decays, so a model is made by a decay branch, which leaves the trunk untouched
(warmup-stable-decay, arXiv:2404.06395).
"""

import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from training import autoencoder, machine, text, unet
from training.feed import feed, feeds
from training.paths import state_dir
from training.pool import Pool
from training.replicas import Replicas
from training.running import Log, Stop, Stopped, load, save
from training.tokenizer import encode_ids

BATCH = {"cpu": 24, "cuda": 256}  # a replica's
RENEWED = {"cpu": 48, "cuda": 512}  # pictures a replica paints anew,
RENEWED_EVERY = 16  # so many steps
FIRST = {"cpu": 6_000, "cuda": 200_000}  # painted before the first step
RATE = {"cpu": 1e-3, "cuda": 1e-3}
WARMUP = 100
AVERAGE = {"cpu": 0.998, "cuda": 0.999}  # decay of the moving average of the weights
LOG_EVERY, SAVE_EVERY = 50, 250
TRUNK, BRANCH = "trunk.pt", "branch.pt"


class Training:
    """Model, average, optimiser and data of one run."""

    def __init__(self, checkpoint: Path) -> None:
        torch.manual_seed(0)
        self.checkpoint = checkpoint
        device = machine.device()
        self.model = unet.build().to(device, memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), machine.sized(RATE), (0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.step = 0
        self.branched_at: int | None = None
        self.tokenizer, self.text = text.trained()
        self.text.to(device)
        self.pool = Pool(autoencoder.trained(), encode_ids(self.tokenizer, [""])[0])
        self.noising = unet.Noising()

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = load(path)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        for mine, theirs in zip(self.average, state["average"], strict=True):
            mine.copy_(theirs)
        self.step, self.branched_at = state["step"], state["branched_at"]

    def save(self) -> None:
        """Write the checkpoint."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "branched_at": self.branched_at,
        }
        save(self.checkpoint, state)

    def open(self) -> None:
        """Start the feeds of scenes, and paint the first latents."""
        self.feeds = feeds(machine.sized(RENEWED), f"{self.step}", self.tokenizer)
        self.chances = machine.generators(self.step)
        first = feed(machine.sized(FIRST) // 100, f"first/{self.step}", self.tokenizer)
        for _ in range(100):
            self.pool.add(*next(first), self.chances[0])

    def loss(self, module: nn.Module, rank: int) -> torch.Tensor:
        """Weighted squared error of the velocity over one replica's batch."""
        if self.step % RENEWED_EVERY == 0:
            self.pool.add(*next(self.feeds[rank]), self.chances[rank])
        count = machine.sized(BATCH)
        clean, ids = self.pool.batch(count)
        # One timestep from each of `count` equal ranges: less variance than independent draws.
        spread = torch.arange(count, device=clean.device) + torch.rand(count, device=clean.device)
        t = (spread / count * unet.STEPS).long().clamp_max(unet.STEPS - 1)
        noisy, target = self.noising.apply(clean, torch.randn_like(clean), t)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with machine.half_precision():
            with torch.no_grad():
                states = self.text(ids).last_hidden_state
            drawn = module(noisy, t, states, return_dict=False)[0]
        errors: torch.Tensor = (drawn.float() - target).square().mean((1, 2, 3))
        return (errors * self.noising.weight[t]).mean()

    def advance(self, replicas: Replicas, rate: float) -> torch.Tensor:
        """One optimiser step; returns the replicas' mean loss and the gradient's norm, (2,)."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        values = replicas.backward(self.loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        weight = 1 - min(machine.sized(AVERAGE), (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.model.parameters()], weight)
        return torch.stack([torch.stack(values).mean(), norm])


def _run(training: Training, until: int | None, decay: int | None, stop: Stop) -> None:
    """Step, log and save until step `until`, or until asked to stop."""
    log = Log("branch" if decay else "trunk")
    training.open()
    if machine.device().type == "cuda":
        training.model.compile()
    replicas = Replicas(training.model)
    losses, clock = [], time.monotonic()
    while until is None or training.step < until:
        rate = machine.sized(RATE) * min(1, (training.step + 1) / WARMUP)
        if decay and training.branched_at is not None:
            rate *= 1 - (training.step - training.branched_at) / decay
        losses.append(training.advance(replicas, rate))
        if training.step % LOG_EVERY == 0:
            loss, norm = torch.stack(losses).mean(0).tolist()
            taken = len(losses) * machine.sized(BATCH) * machine.replicas()
            speed = taken / (time.monotonic() - clock)
            losses, clock = [], time.monotonic()
            log.write(step=training.step, loss=loss, norm=norm, rate=rate, per_second=speed)
        if training.step % SAVE_EVERY == 0 or stop.asked:
            training.save()
        if stop.asked:
            raise Stopped
    training.save()


def train_trunk(until: int | None, stop: Stop) -> None:
    """Train at the stable rate to step `until` (None: until stopped)."""
    training = Training(state_dir() / TRUNK)
    if training.checkpoint.exists():
        training.restore(training.checkpoint)
    _run(training, until, None, stop)


def train_branch(steps: int, stop: Stop) -> None:
    """Decay from the trunk to rate zero over `steps`; an unfinished branch is taken up again."""
    training = Training(state_dir() / BRANCH)
    trunk = state_dir() / TRUNK
    unfinished = training.checkpoint.exists() and (
        training.checkpoint.stat().st_mtime > trunk.stat().st_mtime
    )
    training.restore(training.checkpoint if unfinished else trunk)
    if training.branched_at is None:
        training.branched_at = training.step
    _run(training, training.branched_at + steps, steps, stop)


def averaged(name: str) -> UNet2DConditionModel:
    """The averaged weights of a checkpoint, ready to draw."""
    state = load(state_dir() / name)
    model = unet.build()
    for parameter, value in zip(model.parameters(), state["average"], strict=True):
        parameter.data.copy_(value)
    return model.eval().requires_grad_(False)
