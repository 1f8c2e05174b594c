"""The ControlNets of one model: on disk, in memory, and what they add to its passes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from text2image.core.controls import CONTROL_LOAD, steers
from text2image.core.errors import FieldViolation, InvalidRequest, Unavailable
from text2image.core.init_image import InitImage
from text2image.core.messages import Control, Request
from text2image.engine import devices
from text2image.engine.controls.files import Net, NotAControlNet, Target, read
from text2image.engine.controls.folder import ControlFolder
from text2image.engine.memory import MEMORY_RETRY_SECONDS
from text2image.engine.models.contract import OutOfMemory
from text2image.engine.runtimes.networks import Networks
from text2image.engine.sample import Sample

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

logger = logging.getLogger(__name__)

# Of embedded control pictures that are kept.
_KEPT_BYTES = 64 << 20
_MOST = 255.0

Key = tuple[str, str]
# Down blocks' and the middle's, each (rows, C, h, w).
Residuals = tuple[torch.Tensor, ...]


def key_of(control: Control) -> Key:
    """What a loaded net is known by."""
    return control.name, control.hash


def controls_of(
    checkpoint: Checkpoint, pipeline: Any, networks: Networks, scale: int
) -> ModelControls | None:
    """The ControlNets of a loaded model; None where the settings name no folder of any.

    Args:
        pipeline: its U-Net may be its configuration alone.
        scale: pixels of a side to a latent pixel.
    """
    path = checkpoint.settings.controlnets
    if path is None:
        return None
    if not checkpoint.saving.is_open:
        logger.warning("%s is not steered: see T2I_OFFLOAD, T2I_QUANTIZE", checkpoint.name)
        return None
    folder = ControlFolder(path.expanduser(), Target(pipeline.unet.config, scale))
    return ModelControls(folder, networks, checkpoint.device, checkpoint.dtype)


class ModelControls:
    """The ControlNets of one model.

    `read` may be called in any thread, all else but `load_of` in the engine's.
    """

    def __init__(
        self, folder: ControlFolder, networks: Networks, device: torch.device, dtype: torch.dtype
    ) -> None:
        """`device` and `dtype` are those that the U-Net computes with."""
        self.folder = folder
        self.opening = networks.open
        self._device = device
        self._dtype = dtype
        self._channels = int(folder.target.unet["out_channels"])
        self._loaded: dict[Key, Net] = {}
        self._embedded: OrderedDict[tuple[Key, str], torch.Tensor] = OrderedDict()

    def load_of(self, request: Request, call: int, calls: int) -> float:
        """What its nets add to a row in call number `call` of so many, of a plain row."""
        return CONTROL_LOAD * sum(steers(each, call, calls) for each in request.controls)

    def size_of(self, control: Control) -> int:
        """Bytes that a net takes, about; 0 if it is gone."""
        file = self.folder.find(*key_of(control))
        return file.numbers * self._dtype.itemsize if file else 0

    def read(self, control: Control) -> Net:
        """Reads a net from its file, and makes the network ready that it steers.

        Raises:
            InvalidRequest: the file has changed, or is gone, or cannot be used.
            Unavailable: the device has no room for it.
        """
        file = self.folder.find(*key_of(control))
        # The thread that it is called in is not the one that draws.
        devices.prepare_thread(self._device, 1)
        try:
            if file is None or not file.is_still():
                raise NotAControlNet("has changed or is gone; ask again")
            with devices.device_errors(), devices.beside(self._device):
                net = read(file.path, file.config, self._device, self._dtype)
                self.opening()
        except (NotAControlNet, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            logger.warning("ControlNet %s %s", control.name, reason)
            violation = FieldViolation("controls", f"name {control.name!r}: it {reason}")
            raise InvalidRequest(violation) from error
        except OutOfMemory as error:
            raise Unavailable(
                f"the device has no room for the ControlNet {control.name} now",
                reason=Unavailable.FULL,
                retry_after=MEMORY_RETRY_SECONDS,
            ) from error
        return net

    def put(self, control: Control, net: Net) -> None:
        """Takes in a net that was read."""
        self._loaded[key_of(control)] = net

    def drop(self, control: Control) -> None:
        """Lets a net go that no sample is steered by."""
        key = key_of(control)
        del self._loaded[key]
        for kept in [each for each in self._embedded if each[0] == key]:
            del self._embedded[kept]

    def are_steering(self, samples: Sequence[Sample]) -> bool:
        """Whether some row of a pass over these samples is steered."""
        return any(True for sample in samples for _ in _steering(sample))

    def residuals(
        self,
        samples: Sequence[Sample],
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeddings: torch.Tensor,
        pooled: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
    ) -> Residuals:
        """What is added to the U-Net's down blocks' outputs and its middle's; zeros for rows that nothing steers.

        As diffusers' `StableDiffusionControlNetPipeline` has it without guess mode: both rows of guidance are steered,
        and those of several nets add up. Inputs as `Networks.predict` has them, of all rows.
        """
        total: Residuals = ()
        for key, steered in self._by_net(samples).items():
            net = self._loaded[key]
            rows = [row for row, _ in steered]
            places = devices.placed(rows, self._device, torch.int64)
            taken = latents.to(self._dtype).index_select(0, places)[:, : self._channels]
            sizes = None
            if net.takes_sizes and pooled is not None and time_ids is not None:
                sizes = {
                    "text_embeds": self._of(pooled, places),
                    "time_ids": self._of(time_ids, places),
                }
            scales = [control.scale for _, control in steered]
            down, middle = net.network(
                taken.contiguous(memory_format=torch.channels_last),
                devices.moved(timesteps[rows], self._device),
                encoder_hidden_states=self._of(embeddings, places),
                controlnet_cond=torch.cat([self._picture(net, control) for _, control in steered]),
                conditioning_scale=devices.placed(scales, self._device, self._dtype).view(
                    -1, 1, 1, 1
                ),
                added_cond_kwargs=sizes,
                return_dict=False,
            )
            outputs = (*down, middle)
            # Adding zero is exact, so that rows without a net are as if there were none.
            total = total or tuple(_zeros(len(latents), each) for each in outputs)
            for sums, output in zip(total, outputs, strict=True):
                sums.index_add_(0, places, output)
        self._forget()
        return total

    def _of(self, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return rows.to(self._dtype).index_select(0, places)

    def _by_net(self, samples: Sequence[Sample]) -> dict[Key, list[tuple[int, Control]]]:
        """The rows that each net steers in the next pass over samples."""
        found: dict[Key, list[tuple[int, Control]]] = {}
        first = 0
        for sample in samples:
            for control in _steering(sample):
                own = [(row, control) for row in range(first, first + sample.rows)]
                found.setdefault(key_of(control), []).extend(own)
            first += sample.rows
        return found

    def _picture(self, net: Net, control: Control) -> torch.Tensor:
        """What a net makes of a control picture, (1, D, h, w): once, since no pass changes it."""
        assert isinstance(control.image, InitImage)
        key = key_of(control), control.image.digest
        if key not in self._embedded:
            pixels = devices.moved(_pixels(control.image), self._device).to(self._dtype)
            self._embedded[key] = net.embedded(pixels)
        self._embedded.move_to_end(key)
        return self._embedded[key]

    def _forget(self) -> None:
        held = sum(each.nbytes for each in self._embedded.values())
        while held > _KEPT_BYTES:
            held -= self._embedded.popitem(last=False)[1].nbytes


def _steering(sample: Sample) -> Iterator[Control]:
    """The controls that steer the next pass of a sample."""
    for control in sample.generation.request.controls:
        # Of the calls of its own network: a refiner that takes the last ones is steered by nothing.
        trajectory = sample.state.trajectory
        if steers(control, trajectory.call, trajectory.table.calls):
            yield control


def _zeros(rows: int, like: torch.Tensor) -> torch.Tensor:
    return like.new_zeros(rows, *like.shape[1:]).to(memory_format=torch.channels_last)


def _pixels(image: InitImage) -> torch.Tensor:
    """(1, 3, H, W) from 0 to 1, and -1 where a mask is: as nets for inpainting know what is to be drawn."""
    flat = torch.frombuffer(bytearray(image.rgb), dtype=torch.uint8)
    pixels = flat.view(1, image.height, image.width, 3).movedim(-1, 1).float() / _MOST
    if image.mask is None:
        return pixels
    mask = torch.frombuffer(bytearray(image.mask), dtype=torch.uint8)
    return pixels.masked_fill(mask.view(1, 1, image.height, image.width) > 0, -1.0)
