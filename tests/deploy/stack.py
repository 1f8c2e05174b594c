"""The services of a compose file as processes of this machine, without containers.

Commands, variables, mounts and the names by which services find each other come from the file and the image's
Dockerfile. What differs: ports are free ones, and what a container has at a path lies in a folder of the service.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.harness import ROOT, WAIT_SECONDS, free_port

DEPLOY = ROOT / "deploy"
CONTAINER = DEPLOY / "container"
OUR_IMAGE = "text2image:"
# How a process of each image is told another port than its own, and the programs that images start by themselves.
PORT_SETTINGS = {
    3000: "PORT",
    50051: "GRPC_PORT",
    8501: "T2I_PAGE_PORT",
    6379: "--port {}",
    9090: "--web.listen-address=127.0.0.1:{}",
}
PORTS = {
    "server": (3000, 50051),
    "page": (8501,),
    "limits": (6379,),
    "pictures": (6379,),
    "prometheus": (9090,),
}
PROGRAMS = {"prometheus": ["prometheus"]}

Service = dict[str, Any]


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """What a compose file says where no variable is set."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DEPLOY / name).read_text())
    file: dict[str, Any] = yaml.safe_load(text)
    return file


def image_environment() -> dict[str, str]:
    """The variables that the image itself sets, less the search path."""
    text = (CONTAINER / "Dockerfile").read_text().replace("\\\n", " ")
    words = [
        word for line in re.findall(r"^ENV (.+)$", text, re.MULTILINE) for word in shlex.split(line)
    ]
    variables = dict(word.split("=", 1) for word in words)
    del variables["PATH"]
    return variables


class Stack:
    """The processes of one compose file, each with a folder under `folder`."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """`settings` are variables that the server gets besides."""
        self._folder = folder
        self._settings = settings
        self._file = compose()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = {(name, port): free_port() for name, ports in PORTS.items() for port in ports}

    def address(self, name: str, port: int) -> str:
        """Where a service's port is found here."""
        return f"127.0.0.1:{self._ports[name, port]}"

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def start(self, name: str) -> None:
        service = self._file["services"][name]
        self._mount(name, service)
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                self._command(name, service),
                cwd=ROOT,
                env=self.environment(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, name: str) -> int:
        """The exit status after SIGTERM."""
        process = self._processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{name} does not end:\n{self.log(name)}") from None

    def stop_all(self) -> None:
        for name in list(self._processes):
            self.stop(name)

    def is_running(self, name: str) -> bool:
        return self._processes[name].poll() is None

    def is_healthy(self, name: str) -> bool:
        """Whether the service's own health check succeeds; those of Redis and of ours are run as they stand."""
        kind, *words = self._file["services"][name]["healthcheck"]["test"]
        assert kind == "CMD"
        if words[0] == "redis-cli":
            words[1:1] = ["-p", str(self._ports[name, 6379])]
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=self.environment(name),
            capture_output=True,
            timeout=60,
            check=False,
        )
        return done.returncode == 0

    def environment(self, name: str) -> dict[str, str]:
        service = self._file["services"][name]
        variables = {"PATH": f"{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}"}
        if service["image"].startswith(OUR_IMAGE):
            variables |= image_environment() | {"HOST": "127.0.0.1", "PYTHONPATH": str(ROOT)}
        given = {
            key: self._here(name, value) for key, value in service.get("environment", {}).items()
        }
        own = {
            PORT_SETTINGS[port]: str(self._ports[name, port])
            for port in PORTS[name]
            if PORT_SETTINGS[port].isupper()
        }
        translated = {
            key: self._path(name, value) for key, value in variables.items() if key != "PATH"
        }
        # A socket's path may not be long, as a test's folder is; it lies in /tmp of the container too.
        runtime = {"T2I_RUNTIME_DIR": str(self._folder / "run")}
        more = self._settings if name == "server" else {}
        return {"PATH": variables["PATH"], **translated, **given, **own, **runtime, **more}

    def _command(self, name: str, service: Service) -> list[str]:
        words = [self._path(name, self._here(name, word)) for word in service["command"]]
        options = (
            PORT_SETTINGS[port].format(self._ports[name, port])
            for port in PORTS[name]
            if not PORT_SETTINGS[port].isupper()
        )
        if service["image"].startswith(OUR_IMAGE):
            return ["sh", str(CONTAINER / "entrypoint.sh"), *words]
        return [*PROGRAMS.get(name, []), *words, *shlex.split(" ".join(options))]

    def _mount(self, name: str, service: Service) -> None:
        """Puts what the container would see under the service's folder."""
        for target in self._folders_of(service):
            (self._root(name) / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                place = self._root(name) / target.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to((DEPLOY / source).resolve())
        for mounted in service.get("configs", []):
            place = self._root(name) / mounted["target"].lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(self._here(name, self._file["configs"][mounted["source"]]["content"]))

    @staticmethod
    def _folders_of(service: Service) -> list[str]:
        """Where the container may write."""
        volumes = (volume.split(":") for volume in service.get("volumes", []))
        named = [target for source, target, *_ in volumes if not source.startswith(".")]
        return named + [mount.split(":")[0] for mount in service.get("tmpfs", [])]

    def _here(self, name: str, text: str) -> str:
        """A text with the names of services as addresses of this machine."""
        for (other, port), _ in self._ports.items():
            text = re.sub(rf"\b{other}:{port}\b", self.address(other, port), text)
        return text

    def _path(self, name: str, text: str) -> str:
        """A text with what the container has mounted as paths of this machine."""
        service = self._file["services"][name]
        binds = [volume.split(":")[1] for volume in service.get("volumes", [])]
        for target in {*self._folders_of(service), *binds}:
            text = re.sub(
                rf"(?<![\w.]){re.escape(target)}(?=/|$)", f"{self._root(name)}{target}", text
            )
        return text

    def _root(self, name: str) -> Path:
        return self._folder / name
