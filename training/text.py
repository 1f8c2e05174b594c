"""Stage 1: the text encoder, taught alone what each caption asks for.

A few minutes of classification give the U-Net a conditioning that already separates objects, colours and
places. The encoder is frozen afterwards.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training import tokenizer as tokens
from training.captions import caption
from training.paths import state_dir
from training.replicas import REPLICAS, Replicas
from training.running import Log, Stop, Stopped, decayed, load, save
from training.scenes import Scene, draw_scene, things
from training.vocabulary import BACKGROUNDS, COLOURS, SCENES, SIZES

WIDTH = 192
STEPS = 1400
BATCH = 64  # a replica's
RATE = 1.2e-3
CHECKPOINT = "text.pt"
BEHIND = [*BACKGROUNDS, *SCENES]
QUESTIONS = ("object", "second", "background", "colour", "size")


def build(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The untrained text encoder: prompts to (batch, 24, 192)."""
    end = tokenizer.eos_token_id
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=tokens.LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def encode_ids(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token ids, (batch, 24), padded as the served pipeline pads them."""
    encoded = tokenizer(
        prompts,
        padding="max_length",
        truncation=True,
        max_length=tokens.LENGTH,
        return_tensors="pt",
    )
    ids: torch.Tensor = encoded["input_ids"]
    return ids


def _labels(scene: Scene) -> list[int]:
    """Class of the first object, second object, background, colour and size; 0 is "none" in the last four."""
    second = scene.objects[1] + 1 if len(scene.objects) > 1 else 0
    return [
        scene.objects[0],
        second,
        BEHIND.index(scene.background) + 1 if scene.background else 0,
        list(COLOURS).index(scene.colour) + 1 if scene.colour else 0,
        list(SIZES).index(scene.size) + 1 if scene.size else 0,
    ]


class Reader(nn.Module):
    """The text encoder with one linear classifier a question on its end-of-text state."""

    def __init__(self, encoder: CLIPTextModel, end: int) -> None:
        super().__init__()
        self.encoder, self.end = encoder, end
        n = len(things())
        classes = [n, n + 1, len(BEHIND) + 1, len(COLOURS) + 1, len(SIZES) + 1]
        self.heads = nn.ModuleList([nn.Linear(WIDTH, count) for count in classes])

    def forward(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """Logits of each question for token ids (batch, length)."""
        states = self.encoder(ids).last_hidden_state
        last = (ids == self.end).int().argmax(1)
        pooled = states[torch.arange(len(ids)), last]
        return [head(pooled) for head in self.heads]


def optimiser_of(reader: Reader) -> torch.optim.AdamW:
    """A new optimiser for the whole reader."""
    return torch.optim.AdamW(reader.parameters(), RATE, weight_decay=0.01)


def train(stop: Stop) -> None:
    """Train to the end, or to a checkpoint when asked to stop."""
    torch.manual_seed(0)
    tokens.train()
    tokenizer, log = tokens.trained(), Log("text")
    reader = Reader(build(tokenizer), tokenizer.eos_token_id)
    replicas = Replicas(reader)
    optimiser = optimiser_of(reader)
    path, first = state_dir() / CHECKPOINT, 0
    if path.exists():
        state = load(path)
        reader.load_state_dict(state["reader"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    if first >= STEPS:
        return
    rngs = [random.Random(1000 * first + rank) for rank in range(REPLICAS)]
    hits: list[list[float]] = []

    def loss(module: nn.Module, rank: int) -> torch.Tensor:
        scenes = [draw_scene(rngs[rank]) for _ in range(BATCH)]
        ids = encode_ids(tokenizer, [caption(scene, rngs[rank]) for scene in scenes])
        ids = ids[:, : int((ids != tokenizer.eos_token_id).sum(1).max()) + 1]
        labels = torch.tensor([_labels(scene) for scene in scenes])
        logits = module(ids)
        hits.append(
            [(q.argmax(1) == labels[:, i]).float().mean().item() for i, q in enumerate(logits)]
        )
        return torch.stack(
            [functional.cross_entropy(q, labels[:, i]) for i, q in enumerate(logits)]
        ).sum()

    for step in range(first, STEPS):
        for group in optimiser.param_groups:
            group["lr"] = decayed(RATE, step, STEPS, warmup=50)
        values = replicas.backward(loss)
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if (step + 1) % 250 == 0:
            named = zip(QUESTIONS, np.mean(hits, 0).tolist(), strict=True)
            log.write(step=step + 1, loss=sum(v.item() for v in values) / REPLICAS, **dict(named))
            hits.clear()
        if (step + 1) % 500 == 0 or step + 1 == STEPS or stop.asked:
            state = {"reader": reader.state_dict(), "step": step + 1}
            save(path, state | {"optimiser": optimiser.state_dict()})
        if stop.asked:
            raise Stopped


def trained() -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The tokenizer and the trained text encoder, frozen."""
    tokenizer = tokens.trained()
    model = build(tokenizer)
    weights: dict[str, Any] = load(state_dir() / CHECKPOINT)["reader"]
    prefix = "encoder."
    model.load_state_dict(
        {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    )
    return tokenizer, model.eval().requires_grad_(False)
