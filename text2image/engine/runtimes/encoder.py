"""The half of an autoencoder that few requests ask for, loaded when the first of them comes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch

from text2image.engine.layouts.opening import open_part

Load = Callable[[], Any]


def encoded(vae: Any, pictures: torch.Tensor) -> torch.Tensor:
    """What an autoencoder of diffusers makes of pictures (N, 3, H, W), as `Networks.encode` has it."""
    output = vae.encode(pictures.to(vae.dtype))
    told: torch.Tensor = (
        output.latent_dist.parameters if hasattr(output, "latent_dist") else output.latents
    )
    return told


class LazyEncoder:
    """An autoencoder whose weights are read once they are asked for, in a thread beside the steps."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._loaded: Future[Any] | None = None
        self._lock = Lock()

    def prepare(self) -> None:
        """Begins to read them, unless that was done."""
        with self._lock:
            if self._loaded is not None:
                return
            self._loaded = Future()
        Thread(target=self._run, args=(self._loaded,), name="encoder", daemon=True).start()

    def _run(self, loaded: Future[Any]) -> None:
        try:
            loaded.set_result(self._load())
        except BaseException as error:
            with self._lock:
                # The next request tries again.
                self._loaded = None
            loaded.set_exception(error)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """As `encoded`; waits for the weights.

        Raises:
            OSError, ValueError: they cannot be read.
        """
        self.prepare()
        loaded = self._loaded
        assert loaded is not None
        return encoded(loaded.result(), pictures)


def load_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """The autoencoder of a pipeline's folder, with the weights of its encoder alone."""
    vae = open_part(folder, "vae", dtype)
    vae.decoder = vae.post_quant_conv = None
    return vae.eval()
