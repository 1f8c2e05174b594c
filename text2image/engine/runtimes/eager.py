"""Networks executed by torch, as they are or compiled."""

from __future__ import annotations

from typing import Any

import torch

from text2image.engine import devices
from text2image.engine.runtimes import packing
from text2image.engine.runtimes.deep import OuterPass, WholePass


class TorchNetworks:
    """A diffusers U-Net and autoencoder on one device."""

    def __init__(
        self,
        unet: Any,
        vae: Any,
        device: torch.device,
        *,
        compiled: bool,
        free: int | None,
        deep: bool = False,
    ) -> None:
        """Takes the networks over: it changes the order in which their weights lie in memory.

        Args:
            compiled: whether the U-Net is given to torch.compile.
            free: bytes of memory that are free, where that is known.
            deep: whether passes are to take deep features from others; these are not compiled.
        """
        self._dtype: torch.dtype = unet.dtype
        self._device = device
        self._vae = vae
        for part in (unet, vae):
            part.eval().to(memory_format=torch.channels_last)
        self._whole = WholePass(unet) if deep else None
        if compiled:
            self._unet: Any = torch.compile(unet, dynamic=True)
        else:
            packing.pack(unet, vae.decoder, free=free)
            self._unet = unet
        self._outer = OuterPass(unet) if deep else None

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None,
    ) -> torch.Tensor:
        output: torch.Tensor = self._unet(
            latents.to(self._dtype, memory_format=torch.channels_last),
            timesteps.to(self._device),
            encoder_hidden_states=embeddings,
            timestep_cond=guidance,
            return_dict=False,
        )[0]
        return output

    def predict_whole(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._whole is not None
        scaled = latents.to(self._dtype, memory_format=torch.channels_last)
        both: tuple[torch.Tensor, torch.Tensor] = self._whole(
            scaled, timesteps.to(self._device), embeddings, guidance
        )
        return both

    def predict_outer(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        features: torch.Tensor,
        guidance: torch.Tensor | None,
    ) -> torch.Tensor:
        assert self._outer is not None
        scaled = latents.to(self._dtype, memory_format=torch.channels_last)
        output: torch.Tensor = self._outer(
            scaled, timesteps.to(self._device), embeddings, features, guidance
        )
        return output

    def free_memory(self) -> None:
        devices.free_memory(self._device)

    def held(self) -> int:
        return 0

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        scaled = latents.to(self._vae.dtype, memory_format=torch.channels_last)
        pictures: torch.Tensor = self._vae.decode(scaled, return_dict=False)[0]
        return pictures
