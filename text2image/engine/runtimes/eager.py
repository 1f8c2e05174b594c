"""Networks executed by torch, as they are or compiled."""

from __future__ import annotations

from typing import Any

import torch

from text2image.engine import devices
from text2image.engine.runtimes import packing
from text2image.engine.runtimes.forward import forward


class TorchNetworks:
    """A U-Net or transformer of diffusers, and an autoencoder, on one device."""

    def __init__(
        self, unet: Any, vae: Any, device: torch.device, *, compiled: bool, free: int | None
    ) -> None:
        """Takes the networks over: it changes the order in which their weights lie in memory.

        Args:
            compiled: whether the U-Net is given to torch.compile.
            free: bytes of memory that are free, where that is known.
        """
        self._dtype: torch.dtype = unet.dtype
        self._device = device
        self._vae = vae
        for part in (unet, vae):
            part.eval().to(memory_format=torch.channels_last)
        if compiled:
            self._unet: Any = torch.compile(unet, dynamic=True)
        else:
            packing.pack(unet, vae.decoder, free=free)
            self._unet = unet

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
        return forward(
            self._unet,
            latents.to(self._dtype, memory_format=torch.channels_last),
            timesteps.to(self._device),
            embeddings,
            guidance,
            pooled,
            time_ids,
        )

    def free_memory(self) -> None:
        devices.free_memory(self._device)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        scaled = latents.to(self._vae.dtype, memory_format=torch.channels_last)
        pictures: torch.Tensor = self._vae.decode(scaled, return_dict=False)[0]
        return pictures
