"""Latents of painted pictures, kept in memory and renewed while the U-Net trains."""

import random
from threading import Lock
from typing import Any

import torch
from diffusers import AutoencoderTiny

from training.autoencoder import CHANNELS, PATCH, pictures_of, to_model
from training.captions import caption
from training.scenes import SIZE, Scene, draw_scene

CAPACITY = 65_536
FIRST = 6_000
EMPTY_PROMPTS = (
    0.1  # the share trained without a prompt, for classifier-free guidance (arXiv:2207.12598)
)


class Pool:
    """A ring of (scene, latent): it grows to `CAPACITY`, then the oldest are painted anew."""

    def __init__(self, autoencoder: AutoencoderTiny) -> None:
        self.autoencoder = autoencoder
        side = SIZE // PATCH
        self.latents = torch.empty(CAPACITY, CHANNELS, side, side, dtype=torch.float16)
        self.scenes: list[Scene] = []
        self.next = 0
        self.lock = Lock()  # replicas add from their own threads

    @torch.no_grad()
    def paint(self, count: int, rng: random.Random) -> tuple[list[Scene], torch.Tensor]:
        """New scenes and their latents, scaled as the U-Net sees them."""
        scenes = [draw_scene(rng) for _ in range(count)]
        pixels = to_model(pictures_of(scenes, rng))
        scale = self.autoencoder.config.scaling_factor
        return scenes, self.autoencoder.encode(pixels).latents * scale

    def add(self, scenes: list[Scene], latents: torch.Tensor) -> None:
        """Put pictures into the ring."""
        with self.lock:
            for scene, latent in zip(scenes, latents.half(), strict=True):
                self.latents[self.next] = latent
                if len(self.scenes) < CAPACITY:
                    self.scenes.append(scene)
                else:
                    self.scenes[self.next] = scene
                self.next = (self.next + 1) % CAPACITY

    def batch(self, count: int, rng: random.Random) -> tuple[torch.Tensor, list[str]]:
        """Latents (count, 4, 16, 16) and freshly worded prompts for them."""
        chosen = [rng.randrange(len(self.scenes)) for _ in range(count)]
        prompts = [
            "" if rng.random() < EMPTY_PROMPTS else caption(self.scenes[i], rng) for i in chosen
        ]
        return self.latents[chosen].float(), prompts

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        scenes = [(s.objects, s.background, s.colour, s.size) for s in self.scenes]
        return {"latents": self.latents[: len(scenes)].clone(), "scenes": scenes, "next": self.next}

    def restore(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.scenes = [Scene(*fields) for fields in state["scenes"]]
        self.latents[: len(self.scenes)] = state["latents"]
        self.next = state["next"]
