"""Stage 1: the text encoder, taught alone what each caption asks for.

A few minutes of classification give the U-Net a conditioning that already separates objects, colours and
places. The encoder is frozen afterwards.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training import machine
from training import tokenizer as tokens
from training.feed import Chunk, feeds
from training.paths import state_dir
from training.replicas import Replicas
from training.running import Log, Stop, Stopped, decayed, load, save
from training.scenes import BEHIND, things
from training.vocabulary import COLOURS, SIZES

WIDTH = 192
STEPS = {"cpu": 1400, "cuda": 2000}
BATCH = {"cpu": 64, "cuda": 1024}  # a replica's
RATE = 1.2e-3
CHECKPOINT = "text.pt"
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


def _loss(
    module: nn.Module, chunks: Iterator[Chunk], hits: list[torch.Tensor], end: int
) -> torch.Tensor:
    labels, ids = next(chunks)
    ids = ids[:, : int((ids != end).sum(1).max()) + 1]
    with machine.half_precision():
        logits = module(ids)
    right = [(q.argmax(1) == labels[:, i]).float().mean() for i, q in enumerate(logits)]
    hits.append(torch.stack(right))
    terms = [functional.cross_entropy(q.float(), labels[:, i]) for i, q in enumerate(logits)]
    return torch.stack(terms).sum()


def train(stop: Stop) -> None:
    """Train to the end, or to a checkpoint when asked to stop."""
    torch.manual_seed(0)
    tokens.train()
    tokenizer, log = tokens.trained(), Log("text")
    end = tokenizer.eos_token_id
    reader = Reader(build(tokenizer), end).to(machine.device())
    replicas = Replicas(reader)
    optimiser = optimiser_of(reader)
    path, first, steps = state_dir() / CHECKPOINT, 0, machine.sized(STEPS)
    if path.exists():
        state = load(path)
        reader.load_state_dict(state["reader"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    if first >= steps:
        return
    chunks = feeds(machine.sized(BATCH), f"{first}", tokenizer)
    hits: list[torch.Tensor] = []
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = decayed(RATE, step, steps, warmup=50)
        values = replicas.backward(lambda module, rank: _loss(module, chunks[rank], hits, end))
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if (step + 1) % 250 == 0:
            named = zip(QUESTIONS, torch.stack(hits).mean(0).tolist(), strict=True)
            log.write(step=step + 1, loss=torch.stack(values).mean().item(), **dict(named))
            hits.clear()
        if (step + 1) % 500 == 0 or step + 1 == steps or stop.asked:
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
