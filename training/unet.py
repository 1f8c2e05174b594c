"""The U-Net's shape, the noise it is trained against, and the scheduler it is served with."""

from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import nn

from training import autoencoder, machine
from training.scenes import SIZE
from training.text import WIDTH

STEPS = 1000  # of the noise schedule
LATENT = SIZE // autoencoder.PATCH


def build(widths: tuple[int, ...] = (64, 128, 160), **changes: Any) -> UNet2DConditionModel:
    """The untrained U-Net on 8x16x16 latents.

    Cross-attention at 8x8 and 4x4 says what goes where. The whole prompt, pooled by attention, is added to the
    timestep's embedding besides (`addition_embed_type="text"`), so that the layers at 16x16 know it as well; it
    costs nothing per position, and is silent at first.
    """
    settings: dict[str, Any] = {
        "sample_size": LATENT,
        "in_channels": autoencoder.CHANNELS,
        "out_channels": autoencoder.CHANNELS,
        "block_out_channels": widths,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": tuple(max(width // 32, 1) for width in widths),
        "norm_num_groups": 16,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
    }
    model = UNet2DConditionModel(**settings | changes)
    nn.init.zeros_(model.add_embedding.norm2.weight)
    return model


def scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ of order 2 (arXiv:2211.01095) over the cosine schedule (arXiv:2102.09672)."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=STEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        steps_offset=1,
    )


class Noising:
    """Forward noising x_t = a x_0 + s e with target v = a e - s x_0 (arXiv:2202.00512)."""

    def __init__(self, gamma: float = 5.0) -> None:
        cumulative = scheduler().alphas_cumprod.to(machine.device())
        self.signal = cumulative.sqrt().view(-1, 1, 1, 1)
        self.noise = (1 - cumulative).sqrt().view(-1, 1, 1, 1)
        ratio = cumulative / (1 - cumulative).clamp_min(1e-12)
        # Min-SNR (arXiv:2303.09556) thins out the nearly clean steps. Its weight for v-prediction would also
        # vanish at pure noise, where object and layout are chosen: there it stays 1.
        weight = (gamma / (ratio + 1)).clamp(0.1, 1)
        self.weight = weight / weight.mean()

    def apply(
        self, clean: torch.Tensor, epsilon: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The noisy latent and the target at timesteps t (batch,)."""
        a, s = self.signal[t], self.noise[t]
        return a * clean + s * epsilon, a * epsilon - s * clean
