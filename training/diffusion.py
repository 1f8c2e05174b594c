"""Stage 4: the U-Net, by a warm-up, a long stable rate, and short decays that branch off.

The trunk (stable rate) can go on for ever and is what later runs resume. Most of the visible sharpness
appears while the rate decays, so a model is made by a decay branch, which leaves the trunk untouched
(warmup-stable-decay, arXiv:2404.06395).
"""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from training import autoencoder, text, unet
from training.paths import state_dir
from training.pool import FIRST, Pool
from training.replicas import REPLICAS, Replicas
from training.running import Log, Stop, Stopped, load, save

BATCH = 24  # a replica's
RENEWED = 3  # pictures a replica paints anew in each step
RATE = 1e-3
WARMUP = 100
AVERAGE = 0.998  # decay of the moving average of the weights
LOG_EVERY, SAVE_EVERY = 50, 250
TRUNK, BRANCH, POOL = "trunk.pt", "branch.pt", "pool.pt"


class Training:
    """Model, average, optimiser and data of one run."""

    def __init__(self, checkpoint: Path) -> None:
        torch.manual_seed(0)
        self.checkpoint = checkpoint
        self.model = unet.build().to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), RATE, (0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.average = [p.detach().clone() for p in self.model.parameters()]
        self.step = 0
        self.branched_at: int | None = None
        self.tokenizer, self.text = text.trained()
        self.pool = Pool(autoencoder.trained())
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

    def save_pool(self) -> None:
        """Write the painted latents, which take minutes to make again."""
        save(state_dir() / POOL, self.pool.state())

    def fill_pool(self) -> None:
        """Read the latents back, or paint the first ones."""
        path = state_dir() / POOL
        if path.exists():
            self.pool.restore(load(path))
        with ThreadPoolExecutor(REPLICAS) as threads:
            missing = range(len(self.pool.scenes), FIRST, 16)
            for scenes, latents in threads.map(
                lambda seed: self.pool.paint(16, random.Random(seed)), missing
            ):
                self.pool.add(scenes, latents)

    def loss(self, module: nn.Module, rank: int, rng: random.Random) -> torch.Tensor:
        """Weighted squared error of the velocity over one replica's batch."""
        if RENEWED:
            self.pool.add(*self.pool.paint(RENEWED, rng))
        clean, prompts = self.pool.batch(BATCH, rng)
        with torch.no_grad():
            states = self.text(text.encode_ids(self.tokenizer, prompts)).last_hidden_state
        # One timestep from each of BATCH equal ranges: less variance than independent draws.
        spread = (torch.arange(BATCH) + torch.rand(BATCH)) / BATCH
        t = (spread * unet.STEPS).long().clamp_max(unet.STEPS - 1)
        noisy, target = self.noising.apply(clean, torch.randn_like(clean), t)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        drawn = module(noisy, t, states, return_dict=False)[0]
        errors: torch.Tensor = (drawn - target).square().mean((1, 2, 3))
        return (errors * self.noising.weight[t]).mean()

    def advance(self, replicas: Replicas, rngs: list[random.Random], rate: float) -> list[float]:
        """One optimiser step; returns the replicas' losses and the gradient's norm."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        values = replicas.backward(lambda module, rank: self.loss(module, rank, rngs[rank]))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        weight = 1 - min(AVERAGE, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.model.parameters()], weight)
        return [float(np.mean([v.item() for v in values])), norm.item()]


def _run(training: Training, until: int | None, decay: int | None, stop: Stop) -> None:
    """Step, log and save until step `until`, or until asked to stop."""
    log = Log("branch" if decay else "trunk")
    replicas = Replicas(training.model)
    rngs = [random.Random(f"{training.step}/{rank}") for rank in range(REPLICAS)]
    losses, clock = [], time.monotonic()
    while until is None or training.step < until:
        rate = RATE * min(1, (training.step + 1) / WARMUP)
        if decay and training.branched_at is not None:
            rate *= 1 - (training.step - training.branched_at) / decay
        losses.append(training.advance(replicas, rngs, rate))
        if training.step % LOG_EVERY == 0:
            loss, norm = np.mean(losses, 0)
            speed = len(losses) * BATCH * REPLICAS / (time.monotonic() - clock)
            losses, clock = [], time.monotonic()
            log.write(step=training.step, loss=loss, norm=norm, rate=rate, per_second=speed)
        if training.step % SAVE_EVERY == 0 or stop.asked:
            training.save()
        if stop.asked or training.step % (16 * SAVE_EVERY) == 0:
            training.save_pool()
        if stop.asked:
            raise Stopped
    training.save()


def train_trunk(until: int | None, stop: Stop) -> None:
    """Train at the stable rate to step `until` (None: until stopped)."""
    training = Training(state_dir() / TRUNK)
    if training.checkpoint.exists():
        training.restore(training.checkpoint)
    training.fill_pool()
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
    training.fill_pool()
    _run(training, training.branched_at + steps, steps, stop)


def averaged(name: str) -> UNet2DConditionModel:
    """The averaged weights of a checkpoint, ready to draw."""
    state = load(state_dir() / name)
    model = unet.build()
    for parameter, value in zip(model.parameters(), state["average"], strict=True):
        parameter.data.copy_(value)
    return model.eval().requires_grad_(False)
