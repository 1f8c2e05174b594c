"""What the families share about adapters: those of one model, and passes whose rows take them."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import nn

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.messages import LoraWeight, Request
from text2image.engine.adapters.files import (
    TEXTS,
    Layers,
    NotAnAdapter,
    layers_of_model,
    read,
)
from text2image.engine.adapters.folder import LoraFolder
from text2image.engine.adapters.rows import Adapter, AdapterRows, Weights
from text2image.engine.runtimes.choice import network_of
from text2image.engine.runtimes.networks import Networks
from text2image.engine.sample import Sample

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

logger = logging.getLogger(__name__)

# What a row with adapters takes against a plain one: measured at rank 16, of a network that torch executes anyway, and
# of one that it executes in place of OpenVINO, where a lone row takes 1.7 times and one of 16 takes 1.2. Costs are
# learned by it.
LOAD, LOAD_APART = 1.2, 1.4
# Sets of adapters and weights whose encoded prompts are kept.
_MOST_ENCODERS = 4

E = TypeVar("E")
R = TypeVar("R")
Key = tuple[str, str]


def key_of(lora: LoraWeight) -> Key:
    """What a loaded adapter is known by."""
    return lora.name, lora.hash


def adapters_of(
    checkpoint: Checkpoint, pipeline: Any, networks: Networks, new_encoder: Callable[[], E]
) -> ModelAdapters[E] | None:
    """The adapters of a loaded model; None where the settings name no folder of any.

    Args:
        pipeline: its network may be its configuration alone.
        new_encoder: makes one more of what encodes prompts.
    """
    if checkpoint.settings.loras is None:
        return None
    if not checkpoint.saving.is_open:
        logger.warning(
            "%s is drawn without adapters: see T2I_OFFLOAD, T2I_QUANTIZE", checkpoint.name
        )
        return None
    encoders = {name: pipeline.components.get(name) for name in TEXTS}
    encoders = {name: encoder for name, encoder in encoders.items() if encoder is not None}
    layers = _layers(pipeline, encoders)
    encoders = {name: encoder for name, encoder in encoders.items() if name in layers.parts}
    folder = LoraFolder(checkpoint.settings.loras.expanduser(), layers)
    home = checkpoint.device, checkpoint.dtype
    return ModelAdapters(folder, networks, encoders, new_encoder, home)


def _layers(pipeline: Any, encoders: Mapping[str, nn.Module]) -> Layers:
    own = network_of(pipeline)
    # Of the meta device, since the pipeline's own may have layers in other clothes by now.
    with torch.device("meta"):
        network = type(own).from_config(own.config)
    return layers_of_model(network, encoders)


class ModelAdapters(Generic[E]):
    """The adapters of one model: on disk, in memory, and in its passes.

    `read` may be called in any thread, all else but `load_of` in the engine's.
    """

    def __init__(
        self,
        folder: LoraFolder,
        networks: Networks,
        encoders: Mapping[str, Any],
        new_encoder: Callable[[], E],
        home: tuple[torch.device, torch.dtype],
    ) -> None:
        """`home` is where and in which precision the network computes."""
        self.folder = folder
        self.opening = networks.open
        self._load = LOAD_APART if networks.open.missing else LOAD
        self._homes = {name: (each.device, each.dtype) for name, each in encoders.items()}
        self._network = folder.layers.network
        self._homes[self._network] = home
        self._new_encoder = new_encoder
        self._loaded: dict[Key, Adapter] = {}
        self._rows: AdapterRows | None = None
        self._text_rows = AdapterRows(encoders)
        self._kept: OrderedDict[tuple[tuple[Adapter, float], ...], E] = OrderedDict()

    def load_of(self, request: Request) -> float:
        """What its rows take against plain ones."""
        return self._load if request.loras else 1.0

    def size_of(self, lora: LoraWeight) -> int:
        """Bytes that an adapter takes, about; 0 if it is gone."""
        file = self.folder.find(*key_of(lora))
        return file.numbers * self._homes[self._network][1].itemsize if file else 0

    def read(self, lora: LoraWeight) -> Adapter:
        """Reads an adapter from its file, and makes the network ready that takes it.

        Raises:
            InvalidRequest: the file has changed, or is gone, or cannot be used.
        """
        file = self.folder.find(*key_of(lora))
        try:
            if file is None or file.header is None or not _is_still(file.path, file.stamp):
                raise NotAnAdapter("has changed or is gone; ask again")
            layers = read(file.path, file.header, self.folder.layers, self._homes)
        except (NotAnAdapter, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            logger.warning("adapter %s %s", lora.name, reason)
            violation = FieldViolation("loras", f"name {lora.name!r}: it {reason}")
            raise InvalidRequest(violation) from error
        adapter = Adapter(lora.name, layers)
        if self._network in adapter.parts:
            self.opening()
        return adapter

    def put(self, lora: LoraWeight, adapter: Adapter) -> None:
        """Takes in an adapter that was read."""
        self._loaded[key_of(lora)] = adapter

    def drop(self, lora: LoraWeight) -> None:
        """Lets an adapter go that no sample takes."""
        adapter = self._loaded.pop(key_of(lora))
        for rows in (self._rows, self._text_rows):
            if rows and rows.wears(adapter):
                rows.drop()
        for variant in [each for each in self._kept if any(adapter is one for one, _ in each)]:
            del self._kept[variant]

    def are_worn(self, samples: Sequence[Sample]) -> bool:
        """Whether a pass over these samples needs `predict`: some row has an adapter that changes the network."""
        return any(self._weights_of(sample.generation.request, self._network) for sample in samples)

    def _weights_of(self, request: Request, *parts: str) -> Weights:
        """The adapters of a request that change one of these parts."""
        found = {self._loaded[key_of(each)]: each.weight for each in request.loras}
        return {
            adapter: weight
            for adapter, weight in found.items()
            if not adapter.parts.isdisjoint(parts)
        }

    def predict(self, samples: Sequence[Sample], *inputs: Any, **more: Any) -> torch.Tensor:
        """As `Networks.predict`, each sample's rows with its own adapters."""
        opened = self.opening()
        if self._rows is None:
            self._rows = AdapterRows({self._network: opened.network})
        weights = [self._weights_of(sample.generation.request, self._network) for sample in samples]
        rows = [
            own for own, sample in zip(weights, samples, strict=True) for _ in range(sample.rows)
        ]
        self._rows.wear(rows, inputs[0].device, opened.dtype)
        return opened.predict(*inputs, **more)

    def encode(
        self,
        samples: Sequence[Sample],
        encoder: E,
        encode: Callable[[Sequence[Sample], E], list[R]],
    ) -> list[R]:
        """Encodes the prompts of samples, those together whose adapters change the text encoders alike.

        Args:
            encoder: for samples without such adapters; the others have one of their own, which remembers prompts apart.
            encode: does it, with one of these; as `Model.encode`.
        """
        groups: dict[tuple[tuple[Adapter, float], ...], list[Sample]] = {}
        for sample in samples:
            weights = self._weights_of(sample.generation.request, *TEXTS)
            groups.setdefault(tuple(weights.items()), []).append(sample)
        unread: dict[Sample, R] = {}
        for variant, group in groups.items():
            with self._worn_by_text(variant):
                ends = encode(group, self._encoder_for(variant, encoder))
            unread.update(zip(group, ends, strict=True))
        return [unread[sample] for sample in samples]

    def _encoder_for(self, variant: tuple[tuple[Adapter, float], ...], plain: E) -> E:
        if not variant:
            return plain
        if variant not in self._kept:
            self._kept[variant] = self._new_encoder()
        self._kept.move_to_end(variant)
        while len(self._kept) > _MOST_ENCODERS:
            self._kept.popitem(last=False)
        return self._kept[variant]

    @contextmanager
    def _worn_by_text(self, variant: tuple[tuple[Adapter, float], ...]) -> Iterator[None]:
        """All rows of the text encoders take these: prompts of other samples are not among them."""
        if not variant:
            yield
            return
        # One row stands for any number of them.
        self._text_rows.wear([dict(variant)], *next(iter(self._homes.values())))
        try:
            yield
        finally:
            self._text_rows.drop()


def _is_still(path: Path, stamp: tuple[int, int, int]) -> bool:
    told = path.stat()
    return (told.st_size, told.st_mtime_ns, told.st_ino) == stamp
