"""Scenes and captions without end, drawn by worker processes where a card would wait for them."""

import os
import random
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import CLIPTokenizer

from training import machine
from training.captions import caption
from training.scenes import draw_scene
from training.tokenizer import encode_ids

Chunk = tuple[torch.Tensor, torch.Tensor]


class Scenes(IterableDataset[Chunk]):
    """Chunks of `count` scenes: their codes (count, 5), and token ids (count, 24) if there is a tokenizer."""

    def __init__(
        self, count: int, seed: str, tokenizer: CLIPTokenizer | None, held_out: bool
    ) -> None:
        self._count, self._seed = count, seed
        self._tokenizer, self._held_out = tokenizer, held_out

    def __iter__(self) -> Iterator[Chunk]:
        worker = get_worker_info()
        rng = random.Random(f"{self._seed}/{worker.id if worker else 0}")
        while True:
            scenes = [draw_scene(rng, held_out_too=self._held_out) for _ in range(self._count)]
            codes = torch.tensor([scene.codes for scene in scenes], dtype=torch.int16)
            ids = torch.empty(0, dtype=torch.int16)
            if self._tokenizer:
                prompts = [caption(scene, rng) for scene in scenes]
                ids = encode_ids(self._tokenizer, prompts).short()
            yield codes, ids


def feed(
    count: int, seed: str, tokenizer: CLIPTokenizer | None = None, held_out: bool = False
) -> Iterator[Chunk]:
    """Chunks as `Scenes` makes them, on the machine's device; `held_out` lets in what no model is trained on."""
    device = machine.device()
    workers = max(1, (os.cpu_count() or 1) - 2) if device.type == "cuda" else 0
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ahead = {"num_workers": workers, "prefetch_factor": 4} if workers else {}
    dataset = Scenes(count, seed, tokenizer, held_out)
    for codes, ids in DataLoader(dataset, batch_size=None, **ahead):
        yield codes.to(device).long(), ids.to(device).long()


def feeds(
    count: int, seed: str, tokenizer: CLIPTokenizer | None = None, held_out: bool = False
) -> list[Iterator[Chunk]]:
    """A feed for each replica, whose threads could not share one."""
    ranks = range(machine.replicas())
    return [feed(count, f"{seed}/{rank}", tokenizer, held_out) for rank in ranks]
