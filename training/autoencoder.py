"""Stage 2: the autoencoder, 128x128x3 pictures to 16x16x4 latents and back.

`AutoencoderTiny` (after TAESD, https://github.com/madebyollin/taesd), trained on the artwork alone.
"""

import math
import random
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import nn
from torch.nn import functional

from training import machine
from training.feed import feeds
from training.painter import painter, pictures_of
from training.paths import state_dir
from training.replicas import Replicas
from training.running import Log, Stop, Stopped, decayed, load, save
from training.scenes import SIZE, draw_scene

STEPS = 12_000
WARMUP = 100
RATE = 1.5e-3
# A replica's share of one step; then whole pictures for the last part.
CROPS, CROP = {"cpu": 6, "cuda": 64}, 64
WHOLE_AFTER, WHOLE = 0.93, {"cpu": 2, "cuda": 16}
NOISE = 0.1  # of the latents, whose scale is 1: the decoder learns to forgive the U-Net
PATCH = 8
CHANNELS = 8
CHECKPOINT = "autoencoder.pt"


def build(
    decoder_blocks: tuple[int, ...] = (3, 3, 1, 1), channels: int = CHANNELS
) -> AutoencoderTiny:
    """The untrained autoencoder; the blocks are those at sides of 16, 32, 64 and 128, the channels its latents'."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(32,) * 4,
        decoder_block_out_channels=(32,) * 4,
        num_encoder_blocks=(0, 1, 3, 3),
        num_decoder_blocks=decoder_blocks,
        latent_channels=channels,
        scaling_factor=1.0,
    )
    _initialise(model)
    return model


def pictures(count: int, seed: int) -> torch.Tensor:
    """Painted pictures, the same for the same seed, (count, 3, 128, 128) uint8."""
    rng = random.Random(seed)
    return pictures_of([draw_scene(rng) for _ in range(count)], seed)


def to_model(pixels: torch.Tensor) -> torch.Tensor:
    """0..255 to -1..1."""
    return pixels.float() / 127.5 - 1


def _differences(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def _edges(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the horizontal and vertical gradients."""
    pairs = zip(_differences(a), _differences(b), strict=True)
    return torch.stack([(p - q).abs().mean() for p, q in pairs]).sum()


def picture_loss(drawn: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """L1 and gradient difference at full, half and quarter resolution."""
    loss = (drawn - true).abs().mean() + 0.7 * _edges(drawn, true)
    for _ in range(2):
        drawn, true = functional.avg_pool2d(drawn, 2), functional.avg_pool2d(true, 2)
        loss = loss + 0.5 * (drawn - true).abs().mean() + 0.25 * _edges(drawn, true)
    return loss


def latent_loss(z: torch.Tensor) -> torch.Tensor:
    """Asks for zero mean and unit covariance over the batch, and for values within the decoder's clamp."""
    rows = z.transpose(0, 1).flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    covariance = centred @ centred.T / rows.shape[1]
    unit = (covariance - torch.eye(len(rows), device=z.device)).square().sum() / len(rows)
    return rows.mean(1).square().mean() + unit + 5 * functional.relu(z.abs() - 3.2).mean()


def _loss(model: nn.Module, true: torch.Tensor) -> torch.Tensor:
    z = model.encode(true).latents
    noisy = z + torch.randn_like(z) * NOISE
    return picture_loss(model.decode(noisy).sample, true) + 0.02 * latent_loss(z)


def crops(pictures: torch.Tensor) -> torch.Tensor:
    """The livelier of two random crops of each picture, (count, 3, 64, 64); most of a picture is plain background."""
    count, device = len(pictures), pictures.device
    places = torch.randint(0, (SIZE - CROP) // PATCH + 1, (2, 2, count), device=device) * PATCH
    steps = torch.arange(CROP, device=device)
    each = torch.arange(count, device=device)[:, None, None]
    found = [
        pictures[each, :, (top[:, None] + steps)[:, :, None], (left[:, None] + steps)[:, None]]
        for top, left in places
    ]
    lively = found[0].flatten(1).var(1) > found[1].flatten(1).var(1)
    return torch.where(lively[:, None, None, None], *found).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def psnr(model: AutoencoderTiny, pool: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of the reconstruction in dB over a pool of pictures."""
    errors = []
    for part in torch.split(pool, 8):
        x = to_model(part)
        drawn = model.decode(model.encode(x).latents).sample.clamp(-1, 1)
        errors.append(((drawn - x) / 2).square().mean())
    return -10 * math.log10(torch.stack(errors).mean().item())


def train(stop: Stop) -> None:
    """Train to the end, or to a checkpoint when asked to stop."""
    torch.manual_seed(0)
    model, log = build().to(machine.device()), Log("autoencoder")
    replicas = Replicas(model)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.99), weight_decay=1e-4)
    path, first = state_dir() / CHECKPOINT, 0
    if path.exists():
        state = load(path)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    if first >= STEPS:
        return
    chunks = feeds(machine.sized(CROPS), f"autoencoder/{first}")
    chances = machine.generators(first)
    check = pictures(48, seed=0)
    losses: list[torch.Tensor] = []

    def loss(module: nn.Module, rank: int, whole: bool) -> torch.Tensor:
        codes = next(chunks[rank])[0][: machine.sized(WHOLE) if whole else None]
        true = to_model(painter().paint(codes, chances[rank]))
        return _loss(module, true if whole else crops(true))

    for step in range(first, STEPS):
        rate = decayed(RATE, step, STEPS, WARMUP)
        for group in optimiser.param_groups:
            group["lr"] = rate
        whole = step > WHOLE_AFTER * STEPS
        losses += replicas.backward(lambda module, rank: loss(module, rank, whole))  # noqa: B023
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        done = step + 1
        if done % 100 == 0:
            log.write(step=done, loss=torch.stack(losses).mean().item(), rate=rate)
            losses.clear()
        if done % 250 == 0 or done == STEPS or stop.asked:
            save_checkpoint(model, optimiser, done, scale_of(model, check))
            log.write(step=done, psnr=psnr(model, check))
        if stop.asked:
            raise Stopped


@torch.no_grad()
def scale_of(model: AutoencoderTiny, pool: torch.Tensor) -> float:
    """What latents are multiplied by so that the U-Net sees unit variance."""
    spread: float = model.encode(to_model(pool)).latents.std().item()
    return 1 / spread


def save_checkpoint(
    model: AutoencoderTiny, optimiser: torch.optim.Optimizer, step: int, scale: float
) -> None:
    """Write the checkpoint after a step, with the scale of the latents."""
    state: dict[str, Any] = {"model": model.state_dict(), "step": step, "scale": scale}
    save(state_dir() / CHECKPOINT, state | {"optimiser": optimiser.state_dict()})


def _initialise(model: nn.Module) -> None:
    """Start at unit gain. PyTorch's default shrinks the signal in every layer and costs hundreds of steps."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, AutoencoderTinyBlock):
            for layer, gain in ((0, 2**0.5), (2, 2**0.5), (4, 0.1)):
                weight = module.conv[layer].weight
                nn.init.normal_(weight, std=gain * weight[0].numel() ** -0.5)


def trained() -> AutoencoderTiny:
    """The trained autoencoder, frozen."""
    model = build()
    state = load(state_dir() / CHECKPOINT)
    model.load_state_dict(state["model"])
    model.register_to_config(scaling_factor=state["scale"])
    return model.eval().requires_grad_(False)
