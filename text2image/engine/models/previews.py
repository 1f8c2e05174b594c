"""Cheap previews: a linear map from latent channels to RGB, fitted to what the decoder has drawn so far."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

# Keeps the fit defined before the first picture, and too small to be seen after it.
_RIDGE = 1e-3
# Pictures after which nothing more is to be learned: fifteen numbers, from thousands of pixels of each.
LEARNED = 64


class Projection:
    """Least squares from (latent channels, 1) to RGB by running normal equations."""

    def __init__(self, channels: int) -> None:
        self._pictures = 0
        self._xx = torch.eye(channels + 1) * _RIDGE
        self._xy = torch.zeros(channels + 1, 3)
        # Until something was drawn: the first three channels around grey.
        self._weights = torch.zeros(channels + 1, 3)
        self._weights[:3, :3] = 0.15 * torch.eye(3)[: min(3, channels)]
        self._weights[-1] = 0.5

    @property
    def knows_enough(self) -> bool:
        """Whether nothing more is to be learned."""
        return self._pictures >= LEARNED

    @staticmethod
    def reduced(latents: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """All that is learned from pictures (N, 3, H, W), which take long to come from a card: (N, 3, h, w)."""
        height, width = latents.shape[-2:]
        return F.adaptive_avg_pool2d(pictures, (height, width)).float()

    def learn(self, latents: torch.Tensor, pictures: torch.Tensor) -> None:
        """Takes in decoded latents (N, C, h, w) and their pictures in 0 to 1, until it knows enough.

        Those are (N, 3, H, W), or as `reduced` gives them.
        """
        if self.knows_enough:
            return
        self._pictures += len(pictures)
        small = self.reduced(latents, pictures).cpu()
        x, y = self._rows(latents), small.movedim(1, -1).reshape(-1, 3)
        self._xx += x.T @ x / len(x)
        self._xy += x.T @ y / len(x)
        self._weights = torch.linalg.solve(self._xx, self._xy)

    def draw(self, latents: torch.Tensor) -> torch.Tensor:
        """RGB in 0 to 1, shape (h, w, 3), of latents (1, C, h, w)."""
        height, width = latents.shape[-2:]
        return (self._rows(latents) @ self._weights).clamp(0, 1).reshape(height, width, 3)

    @staticmethod
    def _rows(latents: torch.Tensor) -> torch.Tensor:
        rows = latents.float().cpu().movedim(1, -1).reshape(-1, latents.shape[1])
        return F.pad(rows, (0, 1), value=1.0)
