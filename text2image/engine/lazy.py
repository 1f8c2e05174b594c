"""The way to torch: importing this module loads none of it, calling what it makes does."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from text2image.core.settings import Settings

if TYPE_CHECKING:
    from text2image.engine.models.contract import Model

# What these libraries say of themselves while they load is not for whoever waits for a picture.
_QUIET = ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")


def hush() -> None:
    """Call it before these libraries are imported."""
    for variable in _QUIET:
        os.environ.setdefault(variable, "error")


def loader(settings: Settings, index: int = 0) -> Callable[[Callable[[str], None]], Model]:
    """Loads the model of the settings onto device number `index`. Torch takes seconds to import, and belongs to the
    engine's thread."""

    def load(report: Callable[[str], None]) -> Model:
        report("importing torch")
        hush()
        # The collector would look through hundreds of thousands of objects again and again, a tenth of the time; all of
        # them stay, so that it need not look at them later either.
        gc.disable()
        try:
            from text2image.engine.models.loading import load_model
        finally:
            gc.freeze()
            gc.enable()

        return load_model(settings, index, report)

    return load
