"""An upscaler behind the engine's contract: a picture's passes are its tiles, so that what holds for steps does too.

Tiles of several pictures share a pass, a picture that waits for its turn loses nothing, and no pass is longer than a
tile or a batch of them. Tiles overlap, and in the overlap one passes into the next linearly, first along each row and
then from row to row, as in A1111's `images.combine_grid`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from text2image.core.catalogue import Entry
from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.messages import Input, ModelInfo, Pixels, Request, Sampler
from text2image.core.settings import Settings
from text2image.core.upscalers import FAMILY, MAX_PIXELS, spread
from text2image.engine import devices
from text2image.engine.models.contract import Unread
from text2image.engine.sample import BatchKey, Plan, Sample
from text2image.engine.upscalers.files import NotAnUpscaler, read, revision_of

logger = logging.getLogger(__name__)

# Pixels of a tile's side by the kind of device: on a CPU one pass is to be short.
_TILE = {"cpu": 96}
_LARGE_TILE = 256
_MAX_SIDE = 8192
# What is smaller is drawn with more of its edge, which is cut off again: networks mirror what they lack.
_LEAST_SIDE = 16
_MOST = 255.0
_GREY = 128


@dataclass(frozen=True, slots=True)
class Tile:
    """Where a tile lies, and how many of its first rows and columns lie on earlier ones."""

    top: int
    left: int
    over_top: int
    over_left: int
    ends_row: bool


@dataclass(slots=True, eq=False)
class State:
    """A picture on its way, all of it in the host's memory.

    Attributes:
        picture: (3, H, W), 8 bit; canvas: the rows of tiles that are drawn of the enlarged one, likewise.
        row: (3, tile, W) of the enlarged one, in fp32 from 0 to 255: the row of tiles that is being drawn.
        drawn: tiles.
    """

    picture: torch.Tensor
    canvas: torch.Tensor
    row: torch.Tensor
    tiles: list[Tile]
    drawn: int = 0


def inspect(entry: Entry, settings: Settings, index: int) -> tuple[ModelInfo, int]:
    """What an upscaler is, and the bytes of its weights. It is read whole, so that none is told of that is none.

    Raises:
        ValueError, OSError: it is none, or cannot be read.
    """
    model = load(entry, settings, index, lambda detail: None)
    return model.info, model.nbytes


def load(entry: Entry, settings: Settings, index: int, report: Callable[[str], None]) -> Upscaler:
    """
    Raises:
        ValueError, OSError: as `inspect` says.
    """
    path = Path(entry.source)
    report(f"loading {path.name}")
    device = devices.pick_device(settings.device, index)
    # The thread that it is called in is not the one that draws.
    devices.prepare_thread(device, 1)
    try:
        descriptor, revision = read(path), revision_of(path)
    except NotAnUpscaler as error:
        raise ValueError(f"the upscaler {path.name} {error}") from error
    dtype = devices.pick_dtype(device, settings.dtype)
    if (dtype == torch.float16 and not descriptor.supports_half) or (
        dtype == torch.bfloat16 and not descriptor.supports_bfloat16
    ):
        dtype = torch.float32
    with devices.device_errors(), devices.beside(device):
        descriptor.to(device=device, dtype=dtype)
    return Upscaler(descriptor, entry.name, revision, device, dtype)


class Upscaler:
    """A loaded network that keeps the model contract."""

    def __init__(
        self, descriptor: Any, name: str, revision: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._descriptor = descriptor
        # Where its weights are looked for when they leave the device.
        self._network = descriptor.model.requires_grad_(False)
        self._scale = int(descriptor.scale)
        self._device = device
        self._dtype = dtype
        self._tile = _TILE.get(device.type, _LARGE_TILE)
        self.max_rows = devices.max_rows(device)
        self.memory = devices.memory_of(device)
        self.info = ModelInfo(
            id=name,
            revision=revision,
            family=FAMILY,
            width=self._tile,
            height=self._tile,
            min_side=1,
            max_side=_MAX_SIDE,
            steps=1,
            guidance_scale=0.0,
            sampler=Sampler.EULER,
            samplers=(Sampler.EULER,),
            max_prompt_tokens=0,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            side_multiple=1,
            inputs=(Input.IMAGE,),
            upscale=self._scale,
        )

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self._network.parameters())

    def plan(self, request: Request) -> Plan:
        pixels = request.width * request.height * self._scale**2
        if pixels > MAX_PIXELS:
            reason = (
                f"would have {request.width * self._scale}x{request.height * self._scale} pixels, enlarged "
                f"{self._scale} times; at most {MAX_PIXELS} are made"
            )
            raise InvalidRequest(FieldViolation("image", reason))
        tiles = len(list(tiles_of(*_sides(request), self._tile)))
        return Plan(self._key(request), rows=1, passes=tiles)

    def _key(self, request: Request) -> BatchKey:
        size = _tile_of(request, self._tile)
        return BatchKey(size, size[0] * size[1] / self._tile**2)

    def encode(self, samples: Sequence[Sample]) -> list[Unread]:
        for sample in samples:
            request = sample.generation.request
            width, height = request.width, request.height
            more = [side - own for side, own in zip(_sides(request), (width, height), strict=True)]
            if request.image is None:
                # The warm-up's.
                picture = torch.full((3, height, width), _GREY, dtype=torch.uint8)
            else:
                flat = torch.frombuffer(bytearray(request.image.rgb), dtype=torch.uint8)
                picture = flat.view(height, width, 3).movedim(-1, 0)
            if any(more):
                edged = functional.pad(picture.float(), (0, more[0], 0, more[1]), mode="replicate")
                picture = edged.to(torch.uint8)
            height, width = (side * self._scale for side in picture.shape[1:])
            canvas = torch.zeros(3, height, width, dtype=torch.uint8)
            row = torch.zeros(3, min(height, self._tile * self._scale), width)
            sample.state = State(picture, canvas, row, list(tiles_of(*_sides(request), self._tile)))
        return [Unread()] * len(samples)

    def start(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            sample.passes = len(sample.state.tiles)

    @torch.inference_mode()
    def predict(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """The next tile of each, (3, h, w) from 0 to 1 in the host's memory."""
        with devices.device_errors():
            tiles = torch.stack([self._next(sample) for sample in samples])
            taken = devices.moved(tiles, self._device).to(self._dtype).div_(_MOST)
            drawn = self._descriptor(taken).float().cpu()
        return list(drawn)

    def _next(self, sample: Sample) -> torch.Tensor:
        state: State = sample.state
        # The warm-up takes more than there are.
        tile = state.tiles[min(state.drawn, len(state.tiles) - 1)]
        height, width = _tile_of(sample.generation.request, self._tile)
        return state.picture[:, tile.top : tile.top + height, tile.left : tile.left + width]

    def advance(
        self, samples: Sequence[Sample], predictions: Sequence[torch.Tensor]
    ) -> list[Exception | None]:
        return [self._pasted(each, drawn) for each, drawn in zip(samples, predictions, strict=True)]

    def _pasted(self, sample: Sample, drawn: torch.Tensor) -> Exception | None:
        state: State = sample.state
        if not drawn.isfinite().all():
            reason = f"is one that {self.info.id} makes numbers of that are none"
            return InvalidRequest(FieldViolation("image", reason))
        tile = state.tiles[min(state.drawn, len(state.tiles) - 1)]
        _, height, width = drawn.shape
        top, left = tile.top * self._scale, tile.left * self._scale
        place = state.row[:, :, left : left + width]
        place.lerp_(drawn * _MOST, _ramp(tile.over_left * self._scale, width))
        if tile.ends_row:
            done = state.canvas[:, top : top + height]
            share = _ramp(tile.over_top * self._scale, height).unsqueeze(1)
            done.copy_(torch.lerp(done.float(), state.row, share).round_().clamp_(0, _MOST))
        state.drawn += 1
        sample.done = state.drawn >= len(state.tiles)
        return None

    def decode(self, samples: Sequence[Sample]) -> list[Pixels]:
        pictures = []
        for sample in samples:
            request = sample.generation.request
            width, height = request.width * self._scale, request.height * self._scale
            pictures.append(_pixels(sample.state.canvas[:, :height, :width]))
        return pictures

    def decode_limit(self, sample: Sample) -> int:
        return 1

    def preview(self, sample: Sample) -> Pixels:
        return _pixels(sample.state.picture)

    def release(self, sample: Sample) -> None:
        """There is nothing but its state."""

    def free_memory(self) -> None:
        devices.free_memory(self._device)


def _sides(request: Request) -> tuple[int, int]:
    """Width and height that are drawn."""
    return max(_LEAST_SIDE, request.width), max(_LEAST_SIDE, request.height)


def _tile_of(request: Request, side: int) -> tuple[int, int]:
    """Height and width of its tiles."""
    width, height = _sides(request)
    return min(height, side), min(width, side)


def tiles_of(width: int, height: int, side: int) -> Iterator[Tile]:
    """The tiles of a picture, from the top left: as large as the picture is, or `side`, and evenly spread."""
    across = spread(width, side)
    for top, over_top in spread(height, side):
        for left, over_left in across:
            yield Tile(top, left, over_top, over_left, ends_row=left == across[-1][0])


def _ramp(over: int, length: int) -> torch.Tensor:
    """How much of a tile is taken along one side: from nothing to all over what lies on the one before.

    A quarter at either end is left to the other tile alone, since networks know least at their pictures' edges.
    """
    share = torch.ones(length)
    edge = over // 4
    share[:over] = ((torch.arange(over) - edge + 0.5) / max(1, over - 2 * edge)).clamp(0, 1)
    return share


def _pixels(picture: torch.Tensor) -> Pixels:
    _, height, width = picture.shape
    return Pixels(width, height, picture.movedim(0, -1).contiguous().numpy().tobytes())
