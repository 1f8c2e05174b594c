"""Latents that begin from a picture, and inpainting: what diffusers' pipelines for both do before a first step.

The mathematics is that of `StableDiffusionImg2ImgPipeline`, `StableDiffusionInpaintPipeline` and their like for SDXL,
noise being drawn in their order: for the picture's encoding, for the latents, for the encoding of what is not masked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from text2image.core.init_image import InitImage
from text2image.core.messages import Request
from text2image.engine import devices
from text2image.engine.runtimes.networks import Networks
from text2image.engine.samplers.tables import Table
from text2image.engine.samplers.update import Kept

# What encoding a picture takes, in rows of a pass: as much as a guided step.
ENCODING_ROWS = 2
# Latent pixels to encode at once on a GPU: four pictures of 512 x 512.
_ENCODE_AREA = 4 * 64 * 64
# Of encoded pictures that are kept.
_KEPT_BYTES = 32 << 20
_MOST = 255
_PICTURE, _MASKED = "picture", "masked"


def load_with(load: float, request: Request, rows: int, passes: int) -> float:
    """The load of a plan, with what encoding its pictures takes."""
    return load if request.image is None else load + ENCODING_ROWS / (rows * passes)


@dataclass(frozen=True, slots=True)
class Start:
    """What a picture starts with.

    Attributes:
        latents: (1, C, h, w) in fp32, with the noise of the first call.
        kept: what is put back after each call, where the network does not do so itself.
        condition: (1, C + 1, h, w), which networks for inpainting take beside the latents.
    """

    latents: torch.Tensor
    kept: Kept | None = None
    condition: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A request's picture as the autoencoder tells it: mean and logarithm of the variance, (1, 2 C, h, w), or latents.

    Attributes:
        picture, masked: of the whole picture, and of that without what is masked; None where it is not asked for.
        mask: (1, 1, h, w), 1 where it is drawn anew.
        conditions: whether the network takes mask and masked picture as inputs.
        pure: whether drawing begins with noise alone.
    """

    picture: torch.Tensor | None
    masked: torch.Tensor | None
    mask: torch.Tensor | None
    conditions: bool
    pure: bool
    scaled: Callable[[torch.Tensor], torch.Tensor]

    def start(
        self,
        table: Table,
        shape: tuple[int, ...],
        generator: torch.Generator,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Start:
        """Draws what a sample starts with from its generator; `dtype` is the network's."""
        picture = None if self.picture is None else self._drawn(self.picture, shape, generator)
        noise = torch.randn(shape, generator=generator, dtype=dtype).float()
        noise = devices.moved(noise, device)
        masked = None if self.masked is None else self._drawn(self.masked, shape, generator)
        if self.picture is not None and self.mask is not None and masked is None:
            # Diffusers encodes the masked picture in any case, and later noise depends on how much that took.
            self._drawn(self.picture, shape, generator)
        signal, spread = table.noised[0].tolist()
        if not self.pure and picture is not None:
            latents = signal * picture + spread * noise
        else:
            latents = noise * table.noise_scale
        if self.conditions:
            given = [each for each in (self.mask, masked) if each is not None]
            return Start(latents, condition=torch.cat(given, 1))
        if self.mask is None or picture is None:
            return Start(latents)
        return Start(latents, kept=Kept(picture, noise, self.mask > 0))

    def _drawn(
        self, told: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator
    ) -> torch.Tensor:
        """Latents (1, C, h, w), drawn where the autoencoder tells how they are spread."""
        if told.shape[1] != shape[1]:
            told = DiagonalGaussianDistribution(told).sample(generator)
        return self.scaled(told.float())


class ImageEncoder:
    """Encodes the pictures of requests, each once for all that begin from it, and keeps those of the last requests."""

    def __init__(
        self,
        networks: Networks,
        device: torch.device,
        scaled: Callable[[torch.Tensor], torch.Tensor],
        *,
        scale: int,
        conditions: bool = False,
    ) -> None:
        """
        Args:
            scaled: makes latents of what the autoencoder tells, (N, C, h, w) in fp32.
            scale: pixels to a latent pixel, of a side.
            conditions: whether the network is one for inpainting, which always asks for a mask and a masked picture.
        """
        self._networks = networks
        self._device = device
        self._scaled = scaled
        self._scale = scale
        self._conditions = conditions
        self._kept: OrderedDict[tuple[Any, ...], torch.Tensor] = OrderedDict()

    def prepare(self, request: Request) -> None:
        """Begins to load what encodes pictures, if the request has one and it is not here yet; returns at once."""
        if request.image is not None:
            self._networks.prepare_encoder()

    def encode(self, requests: Sequence[Request]) -> None:
        """Encodes what is not known yet, several at once where the device has the memory for it.

        Args:
            requests: all of one size.

        Raises:
            OutOfMemory: with fewer requests it may fit.
        """
        wanted = {_key(each, part): (each, part) for each in requests for part in self._parts(each)}
        missing = [key for key in wanted if key not in self._kept]
        most = 1
        if self._device.type != "cpu" and requests:
            area = requests[0].height * requests[0].width / self._scale**2
            most = max(1, int(_ENCODE_AREA / area))
        for start in range(0, len(missing), most):
            keys = missing[start : start + most]
            pictures = torch.cat([_part(*wanted[key]) for key in keys])
            encoded = self._networks.encode(devices.moved(pictures, self._device))
            for place, key in enumerate(keys):
                # A copy, since a part of the batch's would keep all of it in memory.
                self._kept[key] = encoded[place : place + 1].clone()
        for key in wanted:
            self._kept.move_to_end(key)
        self._forget(set(wanted))

    def _forget(self, wanted: set[tuple[Any, ...]]) -> None:
        held = sum(each.nbytes for each in self._kept.values())
        for key in [key for key in self._kept if key not in wanted]:
            if held <= _KEPT_BYTES:
                return
            held -= self._kept.pop(key).nbytes

    def of(self, request: Request) -> Encoded | None:
        """What a request's pictures are, encoded now if that was never done or is forgotten; None without any."""
        if request.image is None and not self._conditions:
            return None
        self.encode([request])
        parts = {part: self._kept[_key(request, part)] for part in self._parts(request)}
        return Encoded(
            parts.get(_PICTURE),
            parts.get(_MASKED),
            self._mask(request),
            self._conditions,
            pure=self._is_pure(request),
            scaled=self._scaled,
        )

    def _is_pure(self, request: Request) -> bool:
        """As in diffusers: inpainting at full strength begins with noise alone, and all else with the picture in it."""
        masked = self._conditions or (request.image is not None and request.image.mask is not None)
        return request.image is None or (masked and request.strength == 1.0)

    def _parts(self, request: Request) -> list[str]:
        """What is encoded for a request: its picture, unless none of it stays, and that without what is masked."""
        if not self._conditions:
            return [] if request.image is None else [_PICTURE]
        return [_MASKED] if self._is_pure(request) else [_PICTURE, _MASKED]

    def _mask(self, request: Request) -> torch.Tensor | None:
        """1 where it is drawn anew, (1, 1, h, w); of a network for inpainting everywhere, where no mask is."""
        if not self._conditions and (request.image is None or request.image.mask is None):
            return None
        sides = (request.height // self._scale, request.width // self._scale)
        shrunk = torch.nn.functional.interpolate(_mask(request), size=sides)
        return devices.moved(shrunk, self._device)


def _key(request: Request, part: str) -> tuple[Any, ...]:
    """What a part of a request's picture is kept by."""
    return part, request.height, request.width, request.image and request.image.digest


def _part(request: Request, part: str) -> torch.Tensor:
    """(1, 3, H, W) from -1 to 1; without a picture all is masked, and gray."""
    if request.image is None:
        return torch.zeros(1, 3, request.height, request.width)
    pixels = _pixels(request.image)
    return pixels if part == _PICTURE else pixels * (_mask(request) < 1)


def _pixels(image: InitImage) -> torch.Tensor:
    """(1, 3, H, W) from -1 to 1, as diffusers' `VaeImageProcessor` has it."""
    flat = torch.frombuffer(bytearray(image.rgb), dtype=torch.uint8)
    pixels = flat.view(1, image.height, image.width, 3).movedim(-1, 1).float()
    return 2.0 * (pixels / _MOST) - 1.0


def _mask(request: Request) -> torch.Tensor:
    """(1, 1, H, W), 1 where it is drawn anew."""
    image, size = request.image, (request.height, request.width)
    if image is None or image.mask is None:
        return torch.ones(1, 1, *size)
    mask = torch.frombuffer(bytearray(image.mask), dtype=torch.uint8)
    return (mask.view(1, 1, *size) >= _MOST // 2 + 1).float()
