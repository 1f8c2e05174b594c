"""Pictures in an object store, or wherever else fsspec can write, so that gateways on many machines share one place."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem

from text2image.core.settings import Settings, is_url
from text2image.gateway.retention import Retention
from text2image.gateway.store import NotSaved, Storage, Store, marked, stamped

logger = logging.getLogger(__name__)

# Seconds that a picture may take to be stored; its client waits for it.
PATIENCE = 15.0


class RemoteStore:
    """Saves pictures below a URL, each in one piece under a name that nobody else has."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            ValueError: fsspec knows no such URL.
            ImportError: what it takes for one is not installed; the text says what that is.
        """
        self._url = url.rstrip("/")
        # The older form of a signature, which is the default for URLs, is not taken everywhere.
        signing = {"config_kwargs": {"signature_version": "s3v4"}} if _is_s3(self._url) else {}
        self._files, root = fsspec.core.url_to_fs(self._url, **signing)
        self._root = str(root).rstrip("/")

    def save(self, file: bytes, title: str, suffix: str = ".png") -> str:
        # There is no way to ask for a name that is still free, but a long random one is as good as never taken.
        return self._put(f"{stamped(title)}_{secrets.token_hex(8)}{suffix}", file)

    def save_once(self, file: bytes, title: str, mark: str, suffix: str = ".png") -> str:
        return self._put(marked(title, mark, suffix), file)

    def path_of(self, title: str, mark: str, suffix: str = ".png") -> str:
        return f"{self._url}/{marked(title, mark, suffix)}"

    def signed(self, path: str, seconds: int) -> str | None:
        """A URL at which whoever has it may read what was saved there, for so long; None if the store has none."""
        folder, _, name = path.rpartition("/")
        if folder != self._url:
            return None
        try:
            return str(self._files.sign(f"{self._root}/{name}", expiration=seconds))
        except Exception:
            # As of a store that knows no such URLs, or of a user that may not make them.
            return None

    def holds(self, path: str, file: bytes) -> bool:
        """Whether something as long as this picture is there: what was put there whole is whole."""
        folder, _, name = path.rpartition("/")
        if folder != self._url:
            return False
        try:
            # Not what was listed once.
            self._files.invalidate_cache()
            found = self._within(self._files.info, f"{self._root}/{name}")
        except Exception:
            return False
        return bool(found.get("size") == len(file))

    def _put(self, name: str, file: bytes) -> str:
        try:
            self._within(self._files.pipe_file, f"{self._root}/{name}", file)
        except Exception as error:
            # Every file system has errors of its own. Their texts may name the file, and with it words of the prompt.
            reason = type(error).__name__
            logger.warning("a picture could not be saved in %s: %s", self._url, reason)
            raise NotSaved(reason) from error
        return f"{self._url}/{name}"

    def _within(self, work: Callable[..., Any], *arguments: object) -> Any:
        """What a method of the file system does, within `PATIENCE` where it can be held to that."""
        limit = {"timeout": PATIENCE} if isinstance(self._files, AsyncFileSystem) else {}
        return work(*arguments, **limit)


def _is_s3(url: str) -> bool:
    return url.startswith(("s3://", "s3a://"))


def store_of(settings: Settings) -> Storage | None:
    """Where the settings want pictures saved, or None for nowhere.

    Raises:
        SystemExit: fsspec knows no such place; the text says what it takes.
    """
    if not settings.save_images:
        return None
    folder = settings.output_dir
    if not is_url(folder):
        path = Path(folder)
        return Store(path, Retention(path, settings.save_max_bytes, settings.save_max_age))
    if settings.save_max_bytes or settings.save_max_age:
        raise SystemExit(
            f"text2image: T2I_SAVE_MAX_BYTES and T2I_SAVE_MAX_AGE are for a folder of this machine; "
            f"give {folder} a lifecycle rule of its own"
        )
    try:
        return RemoteStore(str(folder))
    except (ImportError, ValueError) as error:
        raise SystemExit(f"text2image: T2I_OUTPUT_DIR={folder}: {error}") from None
