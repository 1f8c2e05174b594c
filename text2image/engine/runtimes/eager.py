"""Networks executed by torch, as they are or compiled (`buckets.py`)."""

from __future__ import annotations

from typing import Any

import torch

from text2image.engine import devices
from text2image.engine.runtimes import packing
from text2image.engine.runtimes.buckets import Buckets, Network
from text2image.engine.runtimes.forward import forward_of, taken


class TorchNetworks:
    """A U-Net or transformer of diffusers, and an autoencoder, on one device."""

    def __init__(
        self,
        unet: Any,
        vae: Any,
        device: torch.device,
        *,
        free: int | None = None,
        compiled_rows: int = 0,
    ) -> None:
        """Takes the networks over: it changes the order in which their weights lie in memory.

        Args:
            free: bytes of memory that are free, where that is known.
            compiled_rows: of the largest batch that the U-Net is compiled for; 0 leaves it as it is.
        """
        self._dtype: torch.dtype = unet.dtype
        self._device = device
        self._unet = unet
        self._vae = vae
        for part in (unet, vae):
            part.eval().to(memory_format=torch.channels_last)
        self._taken = taken(unet.config)
        self._network: Network = forward_of(unet)
        if compiled_rows:
            self._network = Buckets(self._network, device, most_rows=compiled_rows)
        else:
            packing.pack(unet, vae.decoder, free=free)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None = None,
        *,
        pooled: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        inputs = [
            latents.to(self._dtype, memory_format=torch.channels_last),
            devices.moved(timesteps, self._device),
            embeddings,
        ]
        given = {"guidance": guidance, "pooled": pooled, "time_ids": time_ids}
        return self._network(*inputs, *(given[name] for name in self._taken))

    def free_memory(self) -> None:
        devices.free_memory(self._device)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        scaled = latents.to(self._vae.dtype, memory_format=torch.channels_last)
        pictures: torch.Tensor = self._vae.decode(scaled, return_dict=False)[0]
        return pictures
