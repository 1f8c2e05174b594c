"""Hosts on this machine: network namespaces with an address each, on one bridge that this process is on too."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psutil

from tests import debian

# Bridges are named after the process that made them, so that one that was killed can be cleaned up after.
_MARK = re.compile(r"t2i(\d+)")
# Private networks of 254 addresses each; the bridge has the first of the one that it takes.
_NETWORKS = [f"10.213.{number}" for number in range(256)]


class NoHosts(Exception):
    """This machine does not let us make network namespaces; the text says why."""


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace. `cable` is the bridge's end of its only link."""

    name: str
    address: str
    cable: str

    def command(self, *words: str) -> list[str]:
        """What runs a command there; the process is the command's own."""
        return ["ip", "netns", "exec", self.name, *words]

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Unplugs the host for the length of the block: what is sent is lost, and nobody is told."""
        _ip("link", "set", self.cable, "down")
        try:
            yield
        finally:
            _ip("link", "set", self.cable, "up")


@contextmanager
def network(names: Sequence[str]) -> Iterator[list[Host]]:
    """Hosts that reach each other and this process, removed afterwards.

    Raises:
        NoHosts: they cannot be made here.
    """
    debian.command("ip")
    _remove_leftovers()
    mark = f"t2i{os.getpid()}"
    taken = _ip("route")
    prefix = next(each for each in _NETWORKS if f"{each}.0/24" not in taken)
    with ExitStack() as cleaning:
        _ip("link", "add", mark, "type", "bridge")
        cleaning.callback(_ip, "link", "del", mark)
        _ip("addr", "add", f"{prefix}.1/24", "dev", mark)
        _ip("link", "set", mark, "up")
        yield [
            _host(mark, f"{prefix}.{number + 2}", f"{mark}c{number}", name, cleaning)
            for number, name in enumerate(names)
        ]


def _remove_leftovers() -> None:
    """Takes down what killed processes have left: their networks would catch our packets."""

    def abandoned(name: str) -> bool:
        found = _MARK.match(name)
        return bool(found) and not psutil.pid_exists(int(found[1]))

    for namespace in _ip("netns").split("\n"):
        if abandoned(namespace):
            _ip("netns", "del", namespace.split()[0])
    for link in _ip("-brief", "link", "show", "type", "bridge").split("\n"):
        if abandoned(link):
            _ip("link", "del", link.split()[0])


def _host(bridge: str, address: str, cable: str, name: str, cleaning: ExitStack) -> Host:
    host = Host(f"{bridge}-{name}", address, cable)
    _ip("netns", "add", host.name)
    cleaning.callback(_ip, "netns", "del", host.name)
    _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
    _ip("link", "set", cable, "master", bridge, "up")
    _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip("-n", host.name, "link", "set", device, "up")
    return host


def _ip(*words: str) -> str:
    """What the command prints."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoHosts(f"`ip {' '.join(words)}` says: {done.stderr.strip()}")
    return done.stdout
