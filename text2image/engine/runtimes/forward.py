"""One forward pass of a network of diffusers, by the names that its class has for what it takes."""

from __future__ import annotations

from typing import Any

import torch


def is_transformer(config: Any) -> bool:
    """Whether a network with this configuration is SD3's transformer, and no U-Net."""
    return "joint_attention_dim" in config


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
    if is_transformer(network.config):
        given = {"hidden_states": latents, "timestep": timesteps, "pooled_projections": pooled}
    else:
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids}
        given = {"sample": latents, "timestep": timesteps, "timestep_cond": guidance}
        given["added_cond_kwargs"] = added
    output: torch.Tensor = network(**given, encoder_hidden_states=embeddings, return_dict=False)[0]
    return output
