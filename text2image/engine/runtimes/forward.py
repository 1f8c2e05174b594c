"""One forward pass of a network of diffusers, by the names that its class has for what it takes."""

from __future__ import annotations

from typing import Any

import torch

# Flux's patches are of so many latent pixels a side.
FLUX_PATCH = 2
# Of the places that Flux's tokens stand at, and timesteps of 1 for it.
_AXES = 3
_FLUX_TIMESTEPS = 1000


def is_sd3(config: Any) -> bool:
    """Whether a network with this configuration is the transformer of Stable Diffusion 3."""
    return "pos_embed_max_size" in config


def is_flux(config: Any) -> bool:
    """Whether it is Flux's."""
    return "guidance_embeds" in config


def forward(
    network: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    embeddings: torch.Tensor,
    guidance: torch.Tensor | None = None,
    pooled: torch.Tensor | None = None,
    time_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """The output (rows, C, h, w) of a network; arguments are as `Networks.predict` has them."""
    given: dict[str, Any]
    if is_flux(network.config):
        return _flux(network, latents, timesteps, embeddings, guidance, pooled)
    if is_sd3(network.config):
        given = {"hidden_states": latents, "timestep": timesteps, "pooled_projections": pooled}
    else:
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids}
        given = {"sample": latents, "timestep": timesteps, "timestep_cond": guidance}
        given["added_cond_kwargs"] = added
    output: torch.Tensor = network(**given, encoder_hidden_states=embeddings, return_dict=False)[0]
    return output


def _flux(
    network: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    embeddings: torch.Tensor,
    guidance: torch.Tensor | None,
    pooled: torch.Tensor | None,
) -> torch.Tensor:
    """The same of Flux, which takes patches as tokens, each with its place; as in diffusers' `FluxPipeline`."""
    rows, channels, height, width = latents.shape
    high, wide = height // FLUX_PATCH, width // FLUX_PATCH
    patches = latents.reshape(rows, channels, high, FLUX_PATCH, wide, FLUX_PATCH)
    tokens = patches.permute(0, 2, 4, 1, 3, 5).reshape(rows, high * wide, -1)
    down = torch.arange(high, device=latents.device)[:, None].expand(high, wide)
    across = torch.arange(wide, device=latents.device)[None].expand(high, wide)
    places = torch.stack([torch.zeros_like(down), down, across], -1).reshape(high * wide, _AXES)
    output: torch.Tensor = network(
        hidden_states=tokens,
        timestep=timesteps.to(latents.dtype) / _FLUX_TIMESTEPS,
        guidance=None if guidance is None else guidance[:, 0],
        pooled_projections=pooled,
        encoder_hidden_states=embeddings,
        txt_ids=latents.new_zeros(embeddings.shape[1], _AXES),
        img_ids=places.to(latents.dtype),
        return_dict=False,
    )[0]
    patches = output.reshape(rows, high, wide, channels, FLUX_PATCH, FLUX_PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(rows, channels, height, width)
