"""The image, and containers of it as an engine would run them: runc, a read-only root, no privileges, three volumes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from tests.container.build import IMAGE, PATH, run, storage
from tests.e2e.harness import DEFAULTS, ROOT, START_SECONDS, WAIT_SECONDS, eventually, free_port
from text2image.client import Client
from tools.container import revision

BUILD_SECONDS = 1500.0
_CAPABILITIES = ("bounding", "effective", "permitted", "inheritable", "ambient")


class Image:
    """The image, built by a process from the moment that this is made.

    Attributes:
        revision: the commit that it is built of.
    """

    def __init__(self) -> None:
        self.revision = revision()
        self._folder = Path(tempfile.mkdtemp(prefix="text2image-image-"))
        self._log = self._folder / "build.log"
        with self._log.open("wb") as log:
            self._building = subprocess.Popen(
                [sys.executable, "-m", "tests.container.build", str(self._folder)],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_built(self) -> None:
        status = self._building.wait(BUILD_SECONDS)
        assert status == 0, self._log.read_text(errors="replace")[-8000:]

    @cached_property
    def description(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(
            run(self._folder, "buildah", "inspect", "--type", "image", IMAGE)
        )
        return described

    @property
    def config(self) -> dict[str, Any]:
        """What an engine is told, as Docker writes it."""
        config: dict[str, Any] = self.description["Docker"]["config"]
        return config

    @cached_property
    def root(self) -> Path:
        """The image's files, unpacked."""
        container = run(self._folder, "buildah", "from", IMAGE)
        return Path(run(self._folder, "buildah", "mount", container))

    def size(self) -> int:
        """Bytes of all its files."""
        done = subprocess.run(
            ["du", "--bytes", "--summarize", "--one-file-system", str(self.root)],
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout.split()[0])

    def delete(self) -> None:
        if self._building.poll() is None:
            os.killpg(self._building.pid, 15)
            self._building.wait()
        for words in (("rm", "--all"), ("rmi", "--all", "--force")):
            subprocess.run(
                ["buildah", *words], env=storage(self._folder), capture_output=True, check=False
            )
        shutil.rmtree(self._folder, ignore_errors=True)


class Container:
    """One container of an image, on ports of this machine; what it writes lies in the volumes under `folder`."""

    def __init__(self, image: Image, folder: Path, *words: str, **variables: str) -> None:
        """Prepares a container that is started with the image's own command, or with these words in its place."""
        self.image = image
        self._folder = folder
        self._words = words or tuple(image.config["Cmd"])
        self._ports = [free_port() for _ in range(3)]
        names = ("PORT", "GRPC_PORT", "T2I_PAGE_PORT")
        ports = dict(zip(names, map(str, self._ports), strict=True))
        self._variables = {**DEFAULTS, **ports, **variables}
        self._name = folder.name
        self.pictures, self.cache = folder / "pictures", folder / "cache"
        self._log = folder / "container.log"

    def start(self) -> None:
        config = self.image.config
        user = [int(part) for part in config["User"].split(":")]
        for volume in (self.pictures, self.cache):
            volume.mkdir(parents=True)
            os.chown(volume, *user)
        (self._folder / "config.json").write_text(json.dumps(self._bundle(config, *user)))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._runc("run", "--bundle", str(self._folder), self._name),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _bundle(self, config: dict[str, Any], uid: int, gid: int) -> dict[str, Any]:
        """What the OCI's runtimes are told."""
        own = [f"{name}={value}" for name, value in self._variables.items()]
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": uid, "gid": gid},
                "args": [*config["Entrypoint"], *self._words],
                "env": [*config["Env"], *own],
                "cwd": config["WorkingDir"],
                "noNewPrivileges": True,
                "capabilities": {kind: [] for kind in _CAPABILITIES},
            },
            "root": {"path": str(self.image.root), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                _tmpfs("/dev", "mode=755"),
                _tmpfs("/tmp", "mode=1777"),
                _bind(Path("/etc/hosts"), "/etc/hosts", "ro"),
                _bind(self.pictures, "/pictures", "rw"),
                _bind(self.cache, "/cache", "rw"),
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc")]},
        }

    def _runc(self, *words: str) -> list[str]:
        return [
            str(shutil.which("runc", path=PATH)),
            "--root",
            str(self._folder / "runc"),
            *words,
        ]

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"the container ended by itself:\n{self.log}"
            try:
                return httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200
            except httpx.TransportError:
                return False

        eventually(ready, "the container is ready", START_SECONDS)

    def execute(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the container."""
        return subprocess.run(
            self._runc("exec", self._name, *words), capture_output=True, text=True, check=False
        )

    def terminate(self) -> None:
        """What `docker stop` does."""
        subprocess.run(self._runc("kill", self._name, "TERM"), check=True)

    def wait(self) -> int:
        """The exit status of the container's first process."""
        return self.process.wait(WAIT_SECONDS)

    def end(self) -> None:
        if self.process.poll() is None:
            subprocess.run(self._runc("kill", self._name, "KILL"), check=False)
            self.process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._ports[1]}"

    @property
    def page(self) -> str:
        return f"http://127.0.0.1:{self._ports[2]}"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def client(self) -> Client:
        return Client(self.address)


@contextmanager
def running(container: Container) -> Iterator[Container]:
    """A container that is started, and gone afterwards; its log is shown if anything fails."""
    container.start()
    try:
        yield container
    except BaseException:
        print(container.log)
        raise
    finally:
        container.end()


def _tmpfs(folder: str, mode: str) -> dict[str, Any]:
    return {"destination": folder, "type": "tmpfs", "source": "tmpfs", "options": [mode]}


def _bind(source: Path, destination: str, access: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": ["rbind", access],
    }
