"""A U-Net's deep features, and the pass that takes them from an earlier one.

From step to step the deep features of a U-Net, those of its inner and coarser levels, change little (Ma et al. 2023,
"DeepCache: Accelerating Diffusion Models for Free"). So most of a pass can be left out: only the outermost layers, the
paper's branch 0, see the new latents, and join to them the features that the last whole pass brought up from within.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class WholePass(nn.Module):
    """A U-Net that also tells its deep features; it shares the weights of the one that it is made of."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        last = _twin(unet.up_blocks[-1])
        self._recorded = _Recorded(last.resnets[-1])
        last.resnets = nn.ModuleList([*last.resnets[:-1], self._recorded])
        self.unet = _twin(unet)
        self.unet.up_blocks = nn.ModuleList([*unet.up_blocks[:-1], last])
        # The channels of the outermost skip connection, which are joined behind the features.
        self._skipped = int(unet.config.block_out_channels[0])

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The output (rows, C, h, w) and the deep features (rows, D, h, w); inputs as `Networks.predict` says."""
        output = _output(self.unet, latents, timesteps, embeddings, guidance)
        features = self._recorded.inputs[:, : -self._skipped]
        del self._recorded.inputs
        return output, features


class OuterPass(nn.Module):
    """The outermost layers of a U-Net, whose weights it shares."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        last = _twin(unet.up_blocks[-1])
        last.resnets = last.resnets[-1:]
        if hasattr(last, "attentions"):
            last.attentions = last.attentions[-1:]
        self.unet = _twin(unet)
        self.unet.down_blocks = nn.ModuleList()
        self.unet.mid_block = self._middle = _Given()
        self.unet.up_blocks = nn.ModuleList([last])

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        features: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The output (rows, C, h, w) for deep features of a `WholePass`."""
        self._middle.features = features
        output = _output(self.unet, latents, timesteps, embeddings, guidance)
        del self._middle.features
        return output


def outer_share(unet: Any) -> float:
    """The arithmetic of an outer pass, as a share of a whole one's, of a U-Net of this kind at its own size."""
    config = unet.config
    side, width = int(config.sample_size), config.time_cond_proj_dim
    # Nothing is computed on this device but shapes.
    with torch.device("meta"), torch.no_grad():
        empty = type(unet).from_config(config)
        latents = torch.empty(1, config.in_channels, side, side)
        inputs = (latents, torch.empty(1), torch.empty(1, 77, config.cross_attention_dim))
        guidance = None if width is None else torch.empty(1, width)
        with FlopCounterMode(display=False) as whole:
            _, features = WholePass(empty)(*inputs, guidance)
        with FlopCounterMode(display=False) as outer:
            OuterPass(empty)(*inputs, features, guidance)
    return float(outer.get_total_flops() / whole.get_total_flops())


class _Recorded(nn.Module):
    """A residual block that remembers what it was given."""

    inputs: torch.Tensor

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, inputs: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        self.inputs = inputs
        output: torch.Tensor = self.block(inputs, embedding)
        return output


class _Given(nn.Module):
    """Stands in a U-Net for all that is left out of its middle."""

    features: torch.Tensor

    def forward(self, sample: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return self.features


def _twin(module: Any) -> Any:
    """The same module, whose children can be replaced."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def _output(
    unet: Any,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    embeddings: torch.Tensor,
    guidance: torch.Tensor | None,
) -> torch.Tensor:
    output: torch.Tensor = unet(
        latents,
        timesteps,
        encoder_hidden_states=embeddings,
        timestep_cond=guidance,
        return_dict=False,
    )[0]
    return output
