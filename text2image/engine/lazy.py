"""The way to torch: importing this module loads none of it, calling what it makes does."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from text2image.core.catalogue import Entry, all_entries, default_entry
from text2image.core.messages import ModelInfo
from text2image.core.settings import Settings
from text2image.core.upscalers import PREFIX
from text2image.engine.manager import Host, Inspected

if TYPE_CHECKING:
    from text2image.engine.models.contract import Model
    from text2image.engine.models.parking import HostParking

# What these libraries say of themselves while they load is not for whoever waits for a picture.
_QUIET = ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")
# Loggers of what quantizes, which is imported wherever it is installed: they tell of kernels for other devices.
_WARNING = ("torchao", "bitsandbytes", "torch.utils._pytree")


def hush() -> None:
    """Call it before these libraries are imported."""
    for variable in _QUIET:
        os.environ.setdefault(variable, "error")
    for logger in _WARNING:
        logging.getLogger(logger).setLevel(logging.ERROR)


def loader(settings: Settings, index: int = 0) -> Callable[[Callable[[str], None]], Model]:
    """Loads the default model of the settings onto device number `index`. Torch takes seconds to import, and belongs to
    the engine's thread."""

    def load(report: Callable[[str], None]) -> Model:
        report("importing torch")
        hush()
        # The collector would look through hundreds of thousands of objects again and again, a tenth of the time; all of
        # them stay, so that it need not look at them later either.
        gc.disable()
        try:
            import text2image.engine.models.loading  # noqa: F401 - all that it brings along
        finally:
            gc.freeze()
            gc.enable()

        return _load(default_entry(settings), settings, index, report, beside=False)

    return load


def source_of(settings: Settings, index: int = 0) -> ModelSource | None:
    """Where models and upscalers beside the default model come from; None if the settings name none."""
    return ModelSource(settings, index) if settings.models or settings.upscalers else None


class ModelSource:
    """The models of T2I_MODELS and the upscalers of T2I_UPSCALERS, for device number `index`.

    torch is there when the default one is loaded.
    """

    def __init__(self, settings: Settings, index: int) -> None:
        self._settings = settings
        self._index = index
        self.default = default_entry(settings)
        self.host: Host = LazyHost(settings, index)

    def find(self) -> Mapping[str, Entry]:
        return all_entries(self._settings)

    def inspect(self, entry: Entry) -> Inspected:
        if entry.name.startswith(PREFIX):
            from text2image.engine.upscalers import model as upscalers

            return Inspected(*upscalers.inspect(entry, self._settings, self._index))
        from text2image.engine.models.inspection import inspect_folders, inspect_model

        settings = entry.applied_to(self._settings)
        info, size = inspect_model(settings, self._index)
        folders = inspect_folders(settings, self._index)
        there: dict[str, Any] = {name: folder.look() for name, folder in folders.items()}
        info = replace(info, **there)
        return Inspected(_named(info, entry), size, folders)

    def load(self, entry: Entry, report: Callable[[str], None]) -> Model:
        if entry.name.startswith(PREFIX):
            from text2image.engine.upscalers import model as upscalers

            return upscalers.load(entry, self._settings, self._index, report)
        return _load(entry, self._settings, self._index, report, beside=True)


class LazyHost:
    """The host's memory for models of device number `index`; torch is there when it is asked for anything."""

    def __init__(self, settings: Settings, index: int) -> None:
        self._settings = settings
        self._index = index

    def room(self, held: int) -> int:
        return self._parking().room(held)

    def park(self, model: Model) -> bool:
        return self._parking().park(model)

    def restore(self, model: Model) -> Model:
        return self._parking().restore(model)

    def _parking(self) -> HostParking:
        from text2image.engine.models.parking import HostParking

        return HostParking(self._settings, self._index)


def _load(
    entry: Entry,
    settings: Settings,
    index: int,
    report: Callable[[str], None],
    *,
    beside: bool,
) -> Model:
    from text2image.engine.models.loading import load_model

    model = load_model(entry.applied_to(settings), index, report, beside=beside)
    model.info = _named(model.info, entry)
    return model


def _named(info: ModelInfo, entry: Entry) -> ModelInfo:
    return replace(
        info, id=entry.name, aliases=entry.aliases, licence=entry.licence, price=entry.price
    )
