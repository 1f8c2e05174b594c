"""Networks executed by torch, as they are or compiled (`buckets.py`)."""

from __future__ import annotations

from typing import Any

import torch

from text2image.engine import devices
from text2image.engine.runtimes import packing
from text2image.engine.runtimes.buckets import Buckets, Network
from text2image.engine.runtimes.deep import OuterPass, WholePass
from text2image.engine.runtimes.encoder import encoded
from text2image.engine.runtimes.forward import forward_of, taken
from text2image.engine.runtimes.open import Opening, OpenNetwork, twin_of
from text2image.engine.runtimes.tiling import WHOLE, Tiles


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
        deep: bool = False,
        tiles: Tiles = WHOLE,
    ) -> None:
        """Takes the networks over: it changes the order in which their weights lie in memory.

        Args:
            free: bytes of memory that are free, where that is known.
            compiled_rows: of the largest batch that the U-Net is compiled for; 0 leaves it as it is.
            deep: whether passes are to take deep features from others; these are not compiled.
            tiles: how pictures are decoded.
        """
        self.tiles = tiles
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
        elif device.type == "cpu":
            packing.pack(unet, vae.decoder, free=free)
        # After packing, since their layers are the U-Net's as they are now.
        self._deep = (WholePass(unet), OuterPass(unet)) if deep else None
        self.open = Opening(lambda: OpenNetwork(twin_of(unet), device), nbytes=0)

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

    def predict_whole(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._deep is not None
        scaled = latents.to(self._dtype, memory_format=torch.channels_last)
        moved = devices.moved(timesteps, self._device)
        both: tuple[torch.Tensor, torch.Tensor] = self._deep[0](scaled, moved, embeddings, guidance)
        return both

    def predict_outer(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        features: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert self._deep is not None
        scaled = latents.to(self._dtype, memory_format=torch.channels_last)
        moved = devices.moved(timesteps, self._device)
        output: torch.Tensor = self._deep[1](scaled, moved, embeddings, features, guidance)
        return output

    def free_memory(self) -> None:
        devices.free_memory(self._device)

    def prepare_encoder(self) -> None:
        """It is here with the decoder."""

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return encoded(self._vae, pictures.contiguous(memory_format=torch.channels_last))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        scaled = latents.to(self._vae.dtype, memory_format=torch.channels_last)
        pictures: torch.Tensor = self._vae.decode(scaled, return_dict=False)[0]
        return pictures
