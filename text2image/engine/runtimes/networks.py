"""The two large networks of a latent diffusion model, whatever executes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Networks(Protocol):
    """A U-Net and a decoder. Called from the engine's thread alone; a result stays as it is when the next one comes."""

    def predict(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None,
    ) -> torch.Tensor:
        """The U-Net's output (rows, C, h, w) in its own precision.

        Args:
            latents: (rows, C, h, w), scaled for their timesteps.
            timesteps: (rows,), on the CPU.
            embeddings: of the prompts, (rows, tokens, width).
            guidance: the embedded guidance scale (rows, D) of networks that take it as an input.
        """
        ...

    def predict_whole(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `predict`, and the deep features (rows, D, h, w), if the networks were loaded to tell them."""
        ...

    def predict_outer(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        features: torch.Tensor,
        guidance: torch.Tensor | None,
    ) -> torch.Tensor:
        """What `predict` gives, about, with deep features (rows, D, h, w) of an earlier pass (`deep.py`)."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W), about -1 to 1, of latents (N, C, h, w) as the decoder scales them."""
        ...

    def free_memory(self) -> None:
        """Gives memory that is kept for later back."""
        ...

    def held(self) -> int:
        """Bytes of memory that were taken for good since they were loaded."""
        ...
