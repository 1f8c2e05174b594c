"""One forward pass of a network of diffusers, by the names that its class has for what it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def patch_size(config: Any) -> int:
    """Latent pixels of a side that must come together; 1 where there are no patches."""
    if is_flux(config):
        return FLUX_PATCH
    return int(config.patch_size) if is_sd3(config) else 1


def taken(config: Any) -> tuple[str, ...]:
    """What a network takes besides latents, timesteps and embeddings, as `Networks.predict` calls it, in one order."""
    if is_flux(config):
        return ("pooled", "guidance") if config.guidance_embeds else ("pooled",)
    if is_sd3(config):
        return ("pooled",)
    names = ("pooled", "time_ids") if config.addition_embed_type == "text_time" else ()
    return names if config.time_cond_proj_dim is None else (*names, "guidance")


def forward_of(network: Any) -> Callable[..., torch.Tensor]:
    """The network as a function of latents, timesteps, embeddings and what it has `taken`, by their places."""
    call, names = call_of(network), taken(network.config)

    def forward(
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        *more: torch.Tensor,
    ) -> torch.Tensor:
        return call(network, latents, timesteps, embeddings, **dict(zip(names, more, strict=True)))

    return forward


def call_of(network: Any) -> Callable[..., torch.Tensor]:
    """The function of a network and of what it is given by name."""
    return _flux if is_flux(network.config) else _sd3 if is_sd3(network.config) else _unet


def _unet(
    network: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    embeddings: torch.Tensor,
    guidance: torch.Tensor | None = None,
    pooled: torch.Tensor | None = None,
    time_ids: torch.Tensor | None = None,
    residuals: Sequence[torch.Tensor] = (),
) -> torch.Tensor:
    more: dict[str, Any] = {}
    if residuals:
        more["down_block_additional_residuals"] = tuple(residuals[:-1])
        more["mid_block_additional_residual"] = residuals[-1]
    added = None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids}
    output: torch.Tensor = network(
        latents,
        timesteps,
        encoder_hidden_states=embeddings,
        timestep_cond=guidance,
        added_cond_kwargs=added,
        return_dict=False,
        **more,
    )[0]
    return output


def _sd3(
    network: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    embeddings: torch.Tensor,
    pooled: torch.Tensor,
) -> torch.Tensor:
    output: torch.Tensor = network(
        hidden_states=latents,
        timestep=timesteps,
        encoder_hidden_states=embeddings,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return output


def _flux(
    network: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    embeddings: torch.Tensor,
    pooled: torch.Tensor,
    guidance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Flux takes patches as tokens, each with its place; as in diffusers' `FluxPipeline`."""
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
