"""Networks executed by torch, as they are or compiled (`buckets.py`)."""

from __future__ import annotations

from typing import Any

import torch

from text2image.engine import devices
from text2image.engine.runtimes import packing
from text2image.engine.runtimes.buckets import Buckets, Network


class TorchNetworks:
    """A diffusers U-Net and autoencoder on one device."""

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
        self._network: Network = self._forward
        if compiled_rows:
            self._network = Buckets(self._forward, device, most_rows=compiled_rows)
        else:
            packing.pack(unet, vae.decoder, free=free)

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None,
    ) -> torch.Tensor:
        inputs = [
            latents.to(self._dtype, memory_format=torch.channels_last),
            devices.moved(timesteps, self._device),
            embeddings,
        ]
        return self._network(*inputs, *([] if guidance is None else [guidance]))

    def _forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        output: torch.Tensor = self._unet(
            latents,
            timesteps,
            encoder_hidden_states=embeddings,
            timestep_cond=guidance,
            return_dict=False,
        )[0]
        return output

    def free_memory(self) -> None:
        devices.free_memory(self._device)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        scaled = latents.to(self._vae.dtype, memory_format=torch.channels_last)
        pictures: torch.Tensor = self._vae.decode(scaled, return_dict=False)[0]
        return pictures
