"""Pictures that are decoded in tiles, since decoding takes more memory with each pixel than anything else.

As diffusers' `AutoencoderKL.tiled_decode` does it: square tiles that overlap by a quarter, blended where they do. A
tile sees nothing of what is beyond it, so that a picture differs a little from one that is decoded whole. Whether it is
must therefore not depend on what is free at the moment: its size alone decides, by a limit that follows from the
settings, or from the memory that the device has at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch

# Of a tile's side, as in diffusers.
OVERLAP = 0.25
# The smallest and the largest tile in latent pixels, the latter 512 pixels of most models. diffusers takes the size
# that an autoencoder was trained at, 1024 pixels for SDXL's and Flux's, which spares small cards nothing.
_LEAST_SIDE, _MOST_SIDE = 16, 64
# What decoding takes at its peak, as a multiple of the numbers that the widest layer at full size puts out. The tensors
# of Stable Diffusion's autoencoder are three times as many at once; the rest is for what kernels take to work with.
_COPIES = 5


@dataclass(frozen=True, slots=True)
class Tiles:
    """How large pictures are decoded.

    Attributes:
        above: pixels of the largest picture that is decoded whole; 0 for any.
        side: of a tile, in latent pixels.
        factor: pixels to a latent pixel, of a side.
    """

    above: int = 0
    side: int = _MOST_SIDE
    factor: int = 8


WHOLE = Tiles()


def tiles_for(
    config: Mapping[str, Any], setting: int | None, room: int | None, bytes_each: int
) -> Tiles:
    """How pictures are decoded by an autoencoder with this configuration.

    Args:
        setting: T2I_TILE_ABOVE.
        room: bytes that decoding a picture may take; None where that is not known.
        bytes_each: of a number that it computes with.
    """
    channels = config.get("block_out_channels") or ()
    if setting is not None:
        above = setting**2
    elif room is not None and channels:
        above = max(1, room // (_COPIES * max(channels[:2]) * bytes_each))
    else:
        return WHOLE
    factor = 2 ** (len(channels) - 1) if channels else WHOLE.factor
    trained = int(config.get("sample_size") or 0) // factor // 4 * 4
    side = min(_MOST_SIDE, max(_LEAST_SIDE, trained))
    return Tiles(above, side, factor) if above else WHOLE


def decode(
    decoder: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor, tiles: Tiles
) -> torch.Tensor:
    """Pictures (N, 3, H, W) of latents (N, C, h, w): in tiles if they have more pixels than is decoded whole."""
    height, width = latents.shape[2:]
    if not tiles.above or height * width * tiles.factor**2 <= tiles.above:
        return decoder(latents)
    side, step = tiles.side, int(tiles.side * (1 - OVERLAP))
    shared, kept = int(side * tiles.factor * OVERLAP), step * tiles.factor
    above: list[torch.Tensor] = []
    bands = []
    for top in range(0, height, step):
        row = [
            decoder(latents[:, :, top : top + side, left : left + side])
            for left in range(0, width, step)
        ]
        if above:
            row = [_blended(one, other, shared, 2) for one, other in zip(above, row, strict=True)]
        for place in range(1, len(row)):
            # With what the one before it has become.
            row[place] = _blended(row[place - 1], row[place], shared, 3)
        above = row
        bands.append(torch.cat([each[:, :, :kept, :kept] for each in row], 3))
    return torch.cat(bands, 2)


def _blended(one: torch.Tensor, other: torch.Tensor, shared: int, axis: int) -> torch.Tensor:
    """The other tile, whose first pixels along an axis turn from the last ones of the one into its own."""
    size = min(one.shape[axis], other.shape[axis], shared)
    shape = [1, 1, 1, 1]
    shape[axis] = size
    weight = (torch.arange(size, device=other.device, dtype=other.dtype) / size).view(shape)
    ends, begins = one.narrow(axis, one.shape[axis] - size, size), other.narrow(axis, 0, size)
    rest = other.narrow(axis, size, other.shape[axis] - size)
    return torch.cat([ends * (1 - weight) + begins * weight, rest], axis)


def tile_own(pipeline: Any, tiles: Tiles) -> None:
    """Has the autoencoder of a pipeline that draws by itself decode larger pictures in the tiles that are its own."""
    vae: Any = getattr(pipeline, "vae", None)
    if not tiles.above or not hasattr(vae, "enable_tiling"):
        return
    factor = int(getattr(pipeline, "vae_scale_factor", None) or tiles.factor)
    decode = vae.decode
    vae.enable_tiling()

    @wraps(decode)
    def tiled(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        height, width = latents.shape[-2:]
        vae.use_tiling = height * width * factor**2 > tiles.above
        return decode(latents, *args, **kwargs)

    vae.decode = tiled
