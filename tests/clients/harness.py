"""Programs of others, each run in a process with what it needs beside it; `make clients` installs that."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from PIL import Image

from tests.e2e.harness import ROOT, Server

HERE = Path(__file__).parent
NODE = HERE / "node"
# Where `make clients` puts the packages of Python.
PYTHON = ROOT / ".venv" / "clients" / "bin"
SECONDS = 240


def environment(server: Server) -> dict[str, str]:
    """Of a program that draws with a server."""
    own = {
        "BASE_URL": f"{server.url}/v1",
        "HTTP_URL": server.url,
        "GRPC_ADDRESS": server.address,
        "OPENAI_API_KEY": "none",
        "NO_PROXY": "127.0.0.1",
        # Prices are of no matter here, and are looked up elsewhere.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    return {**os.environ, **own}


def printed(server: Server, *command: str | Path) -> Any:
    """What a program prints last, as JSON."""
    done = subprocess.run(
        [*map(str, command)],
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def kind_of(file: str | bytes) -> tuple[str | None, tuple[int, int]]:
    """The form of a picture, or of its base64, and its size in pixels."""
    raw = base64.b64decode(file) if isinstance(file, str) else file
    image = Image.open(io.BytesIO(raw))
    return image.format, image.size
