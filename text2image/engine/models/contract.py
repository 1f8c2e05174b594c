"""What the engine asks of a model. A new family is one new file that keeps this contract, and a line in `loading.py`.

A picture's way is `plan`, `encode`, `start`, then `predict` and `advance` until it is `done`, `decode`, `release`.
The loop calls all but `plan` from the engine's one thread, the one that loaded the model. It never looks into
`BatchKey.value` or `Sample.state`: they are the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from text2image.core.messages import Pixels

if TYPE_CHECKING:
    from text2image.core.messages import ModelInfo, Request
    from text2image.engine.memory import DeviceMemory
    from text2image.engine.sample import Plan, Sample


class OutOfMemory(Exception):
    """The device has too little memory for this batch; a smaller one may fit."""


class DeviceLost(Exception):
    """The device or its driver is beyond repair in this process; only a new process helps."""


class Unread(NamedTuple):
    """The ends of a sample's two prompts that no text encoder read."""

    prompt: str = ""
    negative: str = ""


class Pending(Protocol):
    """A picture that the device draws beside the steps that follow."""

    def ready(self) -> bool:
        """Whether nobody would wait for it any more."""
        ...

    def pixels(self) -> Pixels:
        """The picture, as soon as it is drawn.

        Raises:
            ValueError: the sample's latents or the picture hold numbers that are not finite.
            ContentBlocked: it is not to be given out.
            DeviceLost: nothing will work in this process any more.
        """
        ...


def pixels_of(picture: Pixels | Pending) -> Pixels:
    """A picture as `decode` gives it, waited for; raises what `Pending.pixels` does."""
    return picture if isinstance(picture, Pixels) else picture.pixels()


class Model(Protocol):
    """A loaded text-to-image model whose network takes a timestep per row."""

    info: ModelInfo
    # Rows of the largest batch that is worth measuring on this device.
    max_rows: int
    # What its steps take of the device; None where that cannot be told.
    memory: DeviceMemory | None

    def plan(self, request: Request) -> Plan:
        """What each picture of a request will take. Called by the event loop at admission: at once, and without torch.

        Raises:
            InvalidRequest: the model cannot do this.
        """
        ...

    def encode(self, samples: Sequence[Sample]) -> list[Unread]:
        """Encodes the prompts of samples, each distinct one once, and keeps the result in their `state`.

        Returns, for each sample, what was not read of its prompts; of the negative one only if it is drawn with.

        Raises:
            OutOfMemory: with fewer samples it may fit.
        """
        ...

    def start(self, samples: Sequence[Sample]) -> None:
        """Makes encoded samples ready for their first pass: latents from the seed. One that raises has started none.

        What a sample's plan could only guess, as its `passes`, or tell as a mean, as its `load`, is set to what it is.
        """
        ...

    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        """One forward pass over samples of one key; the guided prediction of each, in their order.

        Changes no sample, so that it may be tried again with fewer of them. Returns when the device is done.

        Raises:
            OutOfMemory: with fewer samples it may fit.
            DeviceLost: nothing will work in this process any more.
        """
        ...

    def advance(
        self, samples: Sequence[Sample], predictions: Sequence[Any]
    ) -> list[Exception | None]:
        """Takes each sample's own step, and sets its `key`, `rows`, `load` and `done` for what comes next.

        Returns what went wrong with each, or None; it is never tried again. Counting the pass is the caller's.
        """
        ...

    def decode(self, samples: Sequence[Sample]) -> Sequence[Pixels | Pending]:
        """Pictures of samples of one key that are done; the warm-up's have taken a step.

        A device that can draw them beside the steps returns before they are there. Their samples may be released
        meanwhile.

        Raises:
            ValueError: a sample's latents or picture hold numbers that are not finite.
            OutOfMemory: with fewer samples it may fit.
        """
        ...

    def decode_limit(self, sample: Sample) -> int:
        """Samples like this one to decode at once without stalling the others for long."""
        ...

    def preview(self, sample: Sample) -> Pixels:
        """What the sample is turning into, at latent resolution, for little work."""
        ...

    def release(self, sample: Sample) -> None:
        """Frees what `start` took besides `state`, which the caller drops.

        Called once for each sample that was started, however it ends, unless the device is lost.
        """
        ...

    def free_memory(self) -> None:
        """Gives cached device memory back after an `OutOfMemory`."""
        ...
