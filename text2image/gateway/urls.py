"""Pictures by URL: whoever has one may read its picture without a key, until it expires.

A store that makes such URLs itself, as S3 does, is asked for them. Else the gateway keeps the picture for as long under
a random name, on disk or in the Redis of the cache, and signs name and time; nothing in a URL tells of the prompt.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from text2image.core.errors import PermissionDenied
from text2image.core.folders import private_folder
from text2image.core.formats import FileFormat
from text2image.gateway.cache_backends import Backend

KEY_BYTES = 32
_KEY_FILE = "url.key"
_SUFFIXES = {form.suffix: form for form in FileFormat}
_NAME = re.compile(r"([0-9a-f]{32})(\.[a-z]{3,4})")
_SECONDS = re.compile(r"[0-9]{1,12}")

# Asks a store for a URL of its own, by the place where it saved a picture, and for how many seconds.
Sign = Callable[[str, int], str | None]


class Gone(Exception):
    """There is no such picture, or not any more."""


class PictureUrls:
    """Gives out URLs that work for `ttl` seconds, and answers those that are its own."""

    def __init__(
        self,
        backend: Backend,
        key: Callable[[], Awaitable[bytes]],
        ttl: int,
        sign: Sign | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            backend: keeps pictures for about `ttl` seconds.
            key: the secret of all gateways that answer for each other.
            sign: None where the store of saved pictures has no URLs.
        """
        self.ttl = ttl
        self._backend = backend
        self._key = key
        self._sign = sign
        self._clock = clock

    async def url_of(self, file: bytes, form: FileFormat, path: str, base: str) -> str | None:
        """A URL for a picture, or None if it could be kept nowhere.

        Args:
            path: where it was saved, empty if it was not.
            base: the address at which the client reaches what is kept here, with a slash behind it.
        """
        if path and self._sign:
            signed = await asyncio.to_thread(self._sign, path, self.ttl)
            if signed:
                return signed
        mark = secrets.token_hex(16)
        await self._backend.put(mark, file)
        # A backend forgets what it has no room for, without a word.
        if await self._backend.get(mark) is None:
            return None
        name = f"{mark}{form.suffix}"
        expires = str(int(self._clock()) + self.ttl)
        signature = _signature(await self._key(), name, expires)
        return f"{base}{name}?expires={expires}&signature={signature}"

    async def read(self, name: str, expires: str, signature: str) -> tuple[bytes, FileFormat, int]:
        """The picture of a URL's name, its form, and for how many seconds the URL still works.

        Raises:
            PermissionDenied: the URL was not made here, or has expired.
            Gone: it is none of ours, or what it named is not kept any more.
        """
        match = _NAME.fullmatch(name)
        if not match or match[2] not in _SUFFIXES:
            raise Gone
        own = _signature(await self._key(), name, expires)
        if not hmac.compare_digest(own.encode(), signature.encode(errors="replace")):
            raise PermissionDenied("this URL was not made here, or was changed")
        left = int(expires) - int(self._clock()) if _SECONDS.fullmatch(expires) else 0
        if left <= 0:
            raise PermissionDenied("this URL has expired; ask for the picture again")
        file = await self._backend.get(match[1])
        if file is None:
            raise Gone
        return file, _SUFFIXES[match[2]], left


def _signature(key: bytes, name: str, expires: str) -> str:
    signed = hmac.digest(key, f"{name}\n{expires}".encode(errors="replace"), hashlib.sha256)
    return base64.urlsafe_b64encode(signed).decode().rstrip("=")


def key_in(folder: Path) -> bytes:
    """The secret in a private folder, which the first process that asks for it makes up for all others."""
    fresh = secrets.token_bytes(KEY_BYTES)
    try:
        private_folder(folder, "T2I_CACHE_DIR")
        draft = folder / f".{secrets.token_hex(8)}.part"
        draft.touch(0o600)
        try:
            draft.write_bytes(fresh)
            with contextlib.suppress(FileExistsError):
                os.link(draft, folder / _KEY_FILE)
        finally:
            draft.unlink(missing_ok=True)
        return (folder / _KEY_FILE).read_bytes()
    except OSError:
        # Nothing can be kept there either, so that no URL is given out.
        return fresh
