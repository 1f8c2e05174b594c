"""The two large networks of a latent diffusion model, whatever executes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from text2image.engine.runtimes.open import Opening
    from text2image.engine.runtimes.tiling import Tiles


# Numbers that SDXL's U-Net is told of sizes: of the original, the crop's place, and the picture, two each.
SIZE_NUMBERS = 6
# Those that a refiner's is told: a score in place of the picture's size.
SCORE_NUMBERS = 5


class Networks(Protocol):
    """A U-Net or a transformer, and a decoder.

    Called from the engine's thread alone; a result stays as it is when the next one comes.

    Attributes:
        tiles: how pictures are decoded, which `decode` leaves to its caller.
        open: gives the network as torch executes it, layer by layer, for batches that reach into it; in any thread.
    """

    open: Opening
    tiles: Tiles

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
        """The network's output (rows, C, h, w) in its own precision.

        Args:
            latents: (rows, C, h, w), scaled for their timesteps.
            timesteps: (rows,), on the CPU.
            embeddings: of the prompts, (rows, tokens, width).
            guidance: the embedded guidance scale (rows, D) of networks that take it as an input; for Flux's the scale
                itself, (rows, 1).
            pooled: embeddings of whole prompts, (rows, D), for SDXL's, SD3's and Flux's.
            time_ids: what SDXL's are told of sizes, (rows, SIZE_NUMBERS), or a refiner's, (rows, SCORE_NUMBERS).
        """
        ...

    def predict_whole(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `predict`, and the deep features (rows, D, h, w), if the networks were loaded to tell them."""
        ...

    def predict_outer(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        features: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What `predict` gives, about, with deep features (rows, D, h, w) of an earlier pass (`deep.py`)."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W), about -1 to 1, of latents (N, C, h, w) as the decoder scales them."""
        ...

    def prepare_encoder(self) -> None:
        """Begins to load what `encode` needs, if that is not here yet; returns at once, in any thread."""
        ...

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Mean and logarithm of the variance (N, 2 C, h, w) of the latents of pictures (N, 3, H, W), from -1 to 1.

        Of autoencoders that know no variance the latents (N, C, h, w). They are in the encoder's precision, and as the
        autoencoder has them: not scaled.
        """
        ...

    def free_memory(self) -> None:
        """Gives memory that is kept for later back."""
        ...
