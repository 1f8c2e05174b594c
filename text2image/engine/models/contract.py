"""What the engine asks of a model. A new family is one new file that keeps this contract.

The loop calls every method from the engine's one thread, the one that loaded the model. It never looks into
`Sample.state`: that is the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from text2image.core.messages import ModelInfo, Pixels, Request
    from text2image.engine.memory import DeviceMemory
    from text2image.engine.sample import Group, Sample


class OutOfMemory(Exception):
    """The device has too little memory for this batch; a smaller one may fit."""


class DeviceLost(Exception):
    """The device or its driver is beyond repair in this process; only a new process helps."""


class Model(Protocol):
    """A loaded text-to-image model whose network takes a timestep per row."""

    info: ModelInfo
    # Rows of the largest batch that is worth measuring on this device.
    max_rows: int
    # What its steps take of the device; None where that cannot be told.
    memory: DeviceMemory | None

    def group_of(self, request: Request) -> Group:
        """What must be equal for samples to share a forward pass."""
        ...

    def rows_of(self, request: Request) -> int:
        """Rows that one sample of this request takes in a forward pass: two with guidance, one without."""
        ...

    def prepare(self, samples: Sequence[Sample]) -> list[str]:
        """Gives each sample its state: embeddings, initial latents, scheduler, generator.

        Returns, for each sample, the end of its prompt that the text encoder did not read.
        """
        ...

    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        """One forward pass over samples of one group; the guided prediction of each, in their order.

        Changes no sample, so that it may be tried again with fewer of them. Returns when the device is done.

        Raises:
            OutOfMemory: with fewer samples it may fit.
            DeviceLost: nothing will work in this process any more.
        """
        ...

    def advance(self, sample: Sample, prediction: Any) -> None:
        """Takes one step of the sample's own trajectory. Counting the step is the caller's."""
        ...

    def decode(self, samples: Sequence[Sample]) -> list[Pixels]:
        """Pictures of samples of one group that have taken their last step.

        Raises:
            ValueError: a sample's latents or picture hold numbers that are not finite.
            OutOfMemory: with fewer samples it may fit.
        """
        ...

    def decode_limit(self, group: Group) -> int:
        """Samples to decode at once without stalling the others for long."""
        ...

    def preview(self, sample: Sample) -> Pixels:
        """What the sample is turning into, at latent resolution, for little work."""
        ...

    def free_memory(self) -> None:
        """Gives cached device memory back after an `OutOfMemory`."""
        ...
