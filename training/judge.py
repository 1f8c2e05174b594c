"""The judge: a small network that names object, colour and background, trained on the artwork alone.

It never sees a drawn picture in training, so that a drawing passes only by looking like the artwork.
"""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from training.autoencoder import pictures_of, to_model
from training.paths import state_dir
from training.replicas import REPLICAS, Replicas
from training.running import Log, Stop, Stopped, decayed, load, save
from training.scenes import SIZE, Scene, draw_scene, things
from training.vocabulary import BACKGROUNDS, COLOURS, SCENES

STEPS, BATCH, RATE = 3000, 32, 2e-3
RING, RENEWED = 4000, 8  # pictures kept, and how many of them a replica paints anew in each step
CHECKPOINT = "judge.pt"
PALE = "pale"
BEHIND = [PALE, *BACKGROUNDS, *SCENES]
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
        self.name = nn.Linear(features, len(things()))
        self.paint = nn.Linear(features, len(PAINT))
        self.behind = nn.Linear(features, len(BEHIND))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits of the three questions."""
        features = self.body(pictures)
        return self.name(features), self.paint(features), self.behind(features)


def _worsen(pictures: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Blur, noise and shade: a drawing is never as clean as the artwork."""
    if rng.random() < 0.5:
        kernel = rng.choice([3, 5])
        padded = functional.pad(pictures, (kernel // 2,) * 4, mode="replicate")
        pictures = functional.avg_pool2d(padded, kernel, 1)
    pictures = pictures * rng.uniform(0.9, 1.1) + rng.uniform(-0.08, 0.08)
    return pictures + torch.randn_like(pictures) * rng.uniform(0, 0.1)


def _classes(scene: Scene, right: bool) -> list[int]:
    """Object, colour and background of a scene, or of the right half of a pair."""
    paint = PAINT.index(scene.colour) if scene.colour else 0
    return [scene.objects[int(right)], paint, BEHIND.index(scene.background or PALE)]


class Examples:
    """A ring of painted pictures and their classes, renewed as training goes."""

    def __init__(self) -> None:
        self.pixels = torch.empty(RING, 3, SIZE, SIZE, dtype=torch.uint8)
        self.classes = torch.empty(RING, 3, dtype=torch.long)

    def renew(self, places: list[int], rng: random.Random) -> None:
        """Paint new pictures into these places; of a pair one half is taken."""
        scenes = [draw_scene(rng) for _ in places]
        painted = pictures_of(scenes, rng)
        for place, scene, picture in zip(places, scenes, painted, strict=True):
            pair = len(scene.objects) == 2
            right = pair and rng.random() < 0.5
            self.pixels[place] = half(picture[None], right)[0] if pair else picture
            self.classes[place] = torch.tensor(_classes(scene, right))

    def batch(self, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
        """One replica's share of a step: pictures in -1..1 and (object, colour, background) classes."""
        self.renew([rng.randrange(RING) for _ in range(RENEWED)], rng)
        chosen = rng.sample(range(RING), BATCH)
        return _worsen(to_model(self.pixels[chosen]), rng), self.classes[chosen]


def train(stop: Stop) -> None:
    """Train to the end, or to a checkpoint when asked to stop."""
    torch.manual_seed(1)
    judge, log = Judge(), Log("judge")
    replicas = Replicas(judge)
    optimiser = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=0.02)
    path, first = state_dir() / CHECKPOINT, 0
    if path.exists():
        state = load(path)
        judge.load_state_dict(state["judge"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    if first >= STEPS:
        return
    rngs = [random.Random(f"judge/{first}/{rank}") for rank in range(REPLICAS)]
    examples = Examples()
    for place in range(0, RING, 50):
        examples.renew(list(range(place, place + 50)), rngs[0])
    hits: list[float] = []

    def loss(module: nn.Module, rank: int) -> torch.Tensor:
        pictures, labels = examples.batch(rngs[rank])
        answers = module(pictures)
        hits.append((answers[0].argmax(1) == labels[:, 0]).float().mean().item())
        terms = [functional.cross_entropy(a, labels[:, i]) for i, a in enumerate(answers)]
        return terms[0] + 0.3 * terms[1] + 0.3 * terms[2]

    for step in range(first, STEPS):
        for group in optimiser.param_groups:
            group["lr"] = decayed(RATE, step, STEPS, warmup=50, floor=0.0)
        replicas.backward(loss)
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            log.write(step=step + 1, object=float(np.mean(hits)))
            hits.clear()
        if (step + 1) % 200 == 0 or step + 1 == STEPS or stop.asked:
            state = {"judge": judge.state_dict(), "step": step + 1}
            save(path, state | {"optimiser": optimiser.state_dict()})
        if stop.asked:
            raise Stopped


def trained() -> Judge:
    """The trained judge."""
    judge = Judge()
    judge.load_state_dict(load(state_dir() / CHECKPOINT)["judge"])
    return judge.eval().requires_grad_(False)
