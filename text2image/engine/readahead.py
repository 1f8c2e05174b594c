"""Has the kernel read what a runner will load while Python is still importing: torch's libraries, and the weights.

After a reboot, or in a new container, gigabytes come from the disk; on a warm machine this costs next to nothing.
Importing this module loads no torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

from text2image.core.catalogue import default_entry
from text2image.core.model_names import is_single_file
from text2image.core.settings import Settings
from text2image.engine.layouts.folder import WEIGHTS, files_of

logger = logging.getLogger(__name__)


def read_ahead(settings: Settings) -> Thread | None:
    """Starts reading, in a thread; None where the kernel cannot be told."""
    if not hasattr(os, "posix_fadvise"):
        return None
    thread = Thread(target=lambda: advise(wanted(settings)), name="read-ahead", daemon=True)
    thread.start()
    return thread


def wanted(settings: Settings) -> Iterator[Path]:
    """The files that loading will read whole: libraries first, since they are needed first."""
    torch = find_spec("torch")
    if torch and torch.origin:
        yield from sorted(Path(torch.origin).parent.glob("lib/*.so*"))
    settings = default_entry(settings).applied_to(settings)
    if is_single_file(settings.model):
        yield Path(settings.model).expanduser()
    elif folder := _folder_of(settings):
        files = sorted(path for path in files_of(folder) if path.suffix in WEIGHTS)
        if settings.transformer:
            # In the place of those.
            files = [path for path in files if path.parent.name != "transformer"]
            files.append(settings.transformer.expanduser())
        yield from files


def advise(files: Iterable[Path]) -> None:
    """Tells the kernel that these files will be needed soon."""
    for path in files:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)
        except OSError as error:
            # Whatever is wrong with it, loading will tell it better.
            logger.debug("%s is not read ahead: %s", path, error)


def _folder_of(settings: Settings) -> Path | None:
    """Where the model lies, if it lies on this machine."""
    if local := settings.local_model:
        return local
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                settings.model, revision=settings.model_revision, local_files_only=True
            )
        )
    except (OSError, ValueError):
        return None
