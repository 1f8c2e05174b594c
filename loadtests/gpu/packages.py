"""What the measurements need of a Python that has torch: what is missing of it, and how it is put in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
# Of the requirements of tests and load runs, those that are needed here.
TOOLS = {
    "aiohttp",
    "httpx",
    "hypothesis",
    "pytest",
    "pytest-asyncio",
    "pytest-timeout",
    "pytest-xdist",
    "redis",
}
# Comes with the machine, built for its GPU.
GIVEN = "torch"
TOLD = ("torch", "diffusers", "transformers", "bentoml")
# Seconds for an index to answer, and for all to be fetched.
ANSWER, FETCHED = 5, 120


def needed() -> dict[str, str]:
    """Names of packages, and how they are required."""
    found = {}
    for name in ("serve", "redis", "load", "dev"):
        for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines():
            package, equals, _ = line.partition("==")
            if equals and (name == "serve" or package in TOOLS) and package != GIVEN:
                found[package] = line
    return found


def missing() -> list[str]:
    """The requirements of which no version is there at all."""
    return [line for package, line in needed().items() if not _version(package)]


def provide(wheels: Path | None) -> list[str]:
    """Installs what is missing: `wheels`, all of a folder, or from the index that pip knows if it answers.

    Returns what is missing still. Packages that are there stay as they are.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if wheels:
        _run([*pip, "--no-index", "--no-deps", *map(str, sorted(wheels.glob("*.whl")))])
    if lines := missing():
        _run([*pip, "--retries", "0", "--timeout", str(ANSWER), *lines])
    return missing()


def versions() -> dict[str, str]:
    """The versions that figures depend on most."""
    return {package: found for package in TOLD if (found := _version(package))}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCHED, check=False)
    except subprocess.TimeoutExpired:
        print(f"pip was stopped after {FETCHED} s", flush=True)
        return
    if done.returncode:
        print(f"pip: {done.stderr.strip()[-500:]}", flush=True)
