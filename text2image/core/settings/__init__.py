"""Every setting with its documented default, read from the environment; a module for each group of them.

Variables carry the prefix `T2I_`; HOST, PORT and GRPC_PORT are read as they are, since that is how they are known.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from text2image.core.addresses import address_of, reachable, split_port
from text2image.core.folders import own_folder
from text2image.core.settings.bounds import LONGEST_NAMED_TIMEOUT, Bounds
from text2image.core.settings.callers import Callers
from text2image.core.settings.content import Content, Safety
from text2image.core.settings.device import Device
from text2image.core.settings.drawing import MAX_CLIP_SKIP, Drawing
from text2image.core.settings.group import MAX_SIDE
from text2image.core.settings.jobs import Jobs
from text2image.core.settings.models import EMBEDDED_MODEL, MODELS, Models, brought_model
from text2image.core.settings.processes import Processes
from text2image.core.settings.serving import Serving
from text2image.core.settings.storage import Storage
from text2image.core.settings.watching import Watching
from text2image.core.settings.webhooks import Webhooks

__all__ = [
    "EMBEDDED_MODEL",
    "LONGEST_NAMED_TIMEOUT",
    "MAX_CLIP_SKIP",
    "MAX_SIDE",
    "MODELS",
    "Safety",
    "Settings",
    "brought_model",
    "get_settings",
    "is_url",
]

# The name and the password in a URL, which nobody is told.
_USER = re.compile(r"^(\w+://)?.*@")


# The order of the fields, which the documents follow, is that of the last group first.
class Settings(
    Watching,
    Content,
    Webhooks,
    Jobs,
    Storage,
    Callers,
    Bounds,
    Processes,
    Device,
    Drawing,
    Models,
    Serving,
):
    """The settings of the gateway and its runners; `get_settings()` reads them once a process."""

    @property
    def longest_timeout(self) -> float:
        """The most seconds that a request can take, whatever its client names."""
        return max(self.request_timeout, LONGEST_NAMED_TIMEOUT)

    @property
    def cache_root(self) -> Path:
        """The folder of what can be made again."""
        users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return self.cache_dir or Path(users, "text2image")

    @property
    def data_root(self) -> Path:
        """The folder of what cannot be made again; servers at different ports have different ones."""
        users = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
        return self.data_dir or Path(users, "text2image", str(self.grpc_port))

    @property
    def picture_cache_dir(self) -> Path:
        """The cache's folder, which nothing else is kept in."""
        return self.cache_root / "pictures"

    @property
    def local_model(self) -> Path | None:
        """The folder of a pipeline beside the code, or of one that is named by its path; None for any other model."""
        beside, elsewhere = MODELS / self.model, Path(self.model).expanduser()
        for folder in (elsewhere,) if self.model_revision else (beside, elsewhere):
            if (folder / "model_index.json").is_file():
                return folder
        return None

    def socket_of(self, runner: int) -> Path:
        """The private socket of runner `runner`, counted from 0.

        Each server names its processes a `runtime_dir` of its own when it starts.
        """
        folder = self.runtime_dir or own_folder() / str(self.grpc_port)
        return folder / f"runner-{runner}.sock"

    @property
    def server_address(self) -> str:
        """Host and gRPC port of the server that programs on this machine draw with."""
        return self.server or address_of(reachable(self.host), self.grpc_port)

    def listen_address_of(self, runner: int) -> tuple[str, int] | None:
        """Host and port at which runner `runner` takes work from other machines; None where it takes none."""
        if not self.runner_listen:
            return None
        host, port = split_port(self.runner_listen)
        return host, port + runner


def is_url(folder: str | Path) -> bool:
    """Whether a folder is elsewhere, and named by a URL."""
    return "://" in str(folder)


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process.

    Raises:
        SystemExit: a variable has a value that its setting does not take; the text says which, and why.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SystemExit("\n".join(_told(problem) for problem in error.errors())) from None


def _told(problem: ErrorDetails) -> str:
    name = str(problem["loc"][0])
    variable = f"T2I_{name.upper()}" if name in Settings.model_fields else name
    secret = name in ("url_key", "jobs_url", "webhook_secret")
    shown = "***" if secret else _USER.sub(r"\1***@", str(problem["input"]))
    return f"text2image: {variable}={shown}: {problem['msg'].removeprefix('Value error, ')}"
