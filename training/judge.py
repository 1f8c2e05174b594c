"""The judge: a small network that names object, colour and background, trained on the artwork alone.

It never sees a drawn picture in training, so that a drawing passes only by looking like the artwork.
"""

import contextlib
from collections.abc import Iterator

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from training import machine
from training.artwork import selection
from training.autoencoder import to_model
from training.feed import Chunk, feeds
from training.painter import painter
from training.paths import TRAINING, state_dir, with_environment
from training.replicas import Replicas
from training.running import Log, Stop, Stopped, decayed, load, save
from training.scenes import BEHIND as NAMED
from training.scenes import SIZE
from training.vocabulary import COLOURS

STEPS, RATE = {"cpu": 3000, "cuda": 6000}, 2e-3
BATCH = {"cpu": 32, "cuda": 512}  # a replica's
CHECKPOINT = "judge.pt"
COMMITTED = TRAINING / "judge.safetensors"
BEHIND = ["pale", *NAMED]
PAINT = ["its own", *COLOURS]


def half(pictures: torch.Tensor, right: bool) -> torch.Tensor:
    """One half of pictures of pairs, its edge columns repeated to the full width."""
    middle = SIZE // 2
    part = pictures[..., middle:] if right else pictures[..., :middle]
    return functional.pad(part, (middle // 2, middle // 2, 0, 0), mode="replicate")


class Judge(nn.Module):
    """Pictures (batch, 3, 128, 128) in -1..1 to logits of object, colour and background."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.AvgPool2d(2)]
        plan = [(3, 32, 2), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2)]
        for wide_in, wide_out, stride in plan:
            layers += [nn.Conv2d(wide_in, wide_out, 3, stride, 1, bias=False)]
            layers += [nn.BatchNorm2d(wide_out), nn.ReLU()]
        # What is seen counts, not where: of a pair either half is shown.
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        features = 256
        self.name = nn.Linear(features, len(selection()))
        self.paint = nn.Linear(features, len(PAINT))
        self.behind = nn.Linear(features, len(BEHIND))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of the three questions."""
        features = self.body(pictures)
        return self.name(features), self.paint(features), self.behind(features)


def _worsen(pictures: torch.Tensor) -> torch.Tensor:
    """Blur, noise and shade, for each picture anew: a drawing is never as clean as the artwork."""
    count, device = len(pictures), pictures.device
    kernels = torch.randint(0, 4, (count, 1, 1, 1), device=device)  # half of the pictures blurred
    for choice, kernel in ((2, 3), (3, 5)):
        padded = functional.pad(pictures, (kernel // 2,) * 4, mode="replicate")
        blurred = functional.avg_pool2d(padded, kernel, 1)
        pictures = torch.where(kernels == choice, blurred, pictures)
    contrast, shade, noise = torch.rand(3, count, 1, 1, 1, device=device)
    pictures = pictures * (0.9 + 0.2 * contrast) + (0.16 * shade - 0.08)
    return pictures + torch.randn_like(pictures) * 0.1 * noise


def _classes(codes: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Object, colour and background of scenes, or of the right halves of pairs, (count, 3)."""
    first, second, behind, colour, _ = codes.unbind(1)
    return torch.stack([torch.where(right, second - 1, first), colour, behind], 1)


def _examples(codes: torch.Tensor, chance: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures in -1..1 and classes; of a pair one half is shown."""
    pictures = _worsen(to_model(painter().paint(codes, chance)))
    pair = codes[:, 1] > 0
    right = pair & (torch.rand(len(codes), device=codes.device) < 0.5)
    halves = torch.where(
        right[:, None, None, None], half(pictures, right=True), half(pictures, right=False)
    )
    return torch.where(pair[:, None, None, None], halves, pictures), _classes(codes, right)


def _loss(
    module: nn.Module, chunks: Iterator[Chunk], chance: torch.Generator, hits: list[torch.Tensor]
) -> torch.Tensor:
    pictures, labels = _examples(next(chunks)[0], chance)
    with machine.half_precision():
        answers = module(pictures)
    hits.append((answers[0].argmax(1) == labels[:, 0]).float().mean())
    terms = [functional.cross_entropy(a.float(), labels[:, i]) for i, a in enumerate(answers)]
    return terms[0] + 0.3 * terms[1] + 0.3 * terms[2]


def train(stop: Stop) -> None:
    """Train to the end, or to a checkpoint when asked to stop."""
    torch.manual_seed(1)
    judge, log = Judge().to(machine.device()), Log("judge")
    replicas = Replicas(judge)
    optimiser = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=0.02)
    path, first, steps = state_dir() / CHECKPOINT, 0, machine.sized(STEPS)
    if path.exists():
        state = load(path)
        judge.load_state_dict(state["judge"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    if first >= steps:
        return
    # A judge that had never seen a combination could not tell whether the model knows it.
    chunks = feeds(machine.sized(BATCH), f"judge/{first}", held_out=True)
    chances = machine.generators(first)
    hits: list[torch.Tensor] = []
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = decayed(RATE, step, steps, warmup=50, floor=0.0)
        replicas.backward(lambda module, rank: _loss(module, chunks[rank], chances[rank], hits))
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            log.write(step=step + 1, object=torch.stack(hits).mean().item())
            hits.clear()
        if (step + 1) % 200 == 0 or step + 1 == steps or stop.asked:
            state = {"judge": judge.state_dict(), "step": step + 1}
            save(path, state | {"optimiser": optimiser.state_dict()})
        if stop.asked:
            raise Stopped


def trained() -> Judge:
    """The judge that was trained here to the end, or else the one that comes with the code."""
    path = state_dir() / CHECKPOINT
    state = load(path) if path.exists() else {"step": 0}
    finished = state["step"] >= machine.sized(STEPS)
    judge = Judge()
    judge.load_state_dict(state["judge"] if finished else load_file(COMMITTED))
    return judge.eval().requires_grad_(False)


if __name__ == "__main__":
    with_environment("training.judge")
    with contextlib.suppress(Stopped):
        train(Stop())
