"""Latents of painted pictures with their prompts, kept in memory and renewed while the U-Net trains."""

from threading import Lock

import torch
from diffusers import AutoencoderTiny

from training import machine
from training.autoencoder import CHANNELS, PATCH, to_model
from training.painter import painter
from training.scenes import SIZE
from training.tokenizer import LENGTH

CAPACITY = {"cpu": 65_536, "cuda": 1_048_576}
# The share trained without a prompt, for classifier-free guidance (arXiv:2207.12598).
EMPTY_PROMPTS = 0.1
AT_ONCE = 512


class Pool:
    """A ring of latents, scaled as the U-Net sees them, and token ids: it grows, then the oldest are painted anew."""

    def __init__(self, autoencoder: AutoencoderTiny, empty: torch.Tensor) -> None:
        self._device = machine.device()
        self._autoencoder = autoencoder.to(self._device)
        self._empty = empty.to(self._device).short()  # the ids of no prompt
        self._capacity, side = machine.sized(CAPACITY), SIZE // PATCH
        self._latents = torch.empty(
            self._capacity, CHANNELS, side, side, dtype=torch.float16, device=self._device
        )
        self._ids = torch.empty(self._capacity, LENGTH, dtype=torch.int16, device=self._device)
        self._next = self._filled = 0
        self._lock = Lock()  # replicas add from their own threads

    @torch.no_grad()
    def add(self, codes: torch.Tensor, ids: torch.Tensor, chance: torch.Generator) -> None:
        """Paint scenes (count, 5) and put them into the ring with their token ids (count, 24)."""
        scale = self._autoencoder.config.scaling_factor
        for some, theirs in zip(codes.split(AT_ONCE), ids.split(AT_ONCE), strict=True):
            pixels = to_model(painter().paint(some, chance))
            latents = self._autoencoder.encode(pixels).latents * scale
            with self._lock:
                places = torch.arange(len(some), device=self._device) + self._next
                self._latents[places % self._capacity] = latents.half()
                self._ids[places % self._capacity] = theirs.short()
                self._next = (self._next + len(some)) % self._capacity
                self._filled = min(self._filled + len(some), self._capacity)

    def batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (count, channels, 16, 16) and token ids (count, 24)."""
        chosen = torch.randint(self._filled, (count,), device=self._device)
        unasked = torch.rand(count, 1, device=self._device) < EMPTY_PROMPTS
        ids = torch.where(unasked, self._empty, self._ids[chosen])
        return self._latents[chosen].float(), ids.long()
