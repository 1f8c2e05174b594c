"""Installs requirements into a virtual environment: `python3 tools/install.py FOLDER REQUIREMENTS ...`.

Runs before anything is installed, so it needs Python alone. It makes the environment if there is none, takes torch
without CUDA where there is no NVIDIA GPU, and uv in place of pip where there is one.

CPU=1 or CPU=0 in the environment overrules what is found of GPUs, UV=0 what is found of uv.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CONSTRAINTS = "requirements/constraints.txt"
# Seconds that the index of torch without CUDA may take to answer.
INDEX_TIMEOUT = 3.0
_GPU_FILES = ("/dev/nvidia0", "/dev/dxg", "/proc/driver/nvidia/version")


def main() -> int:
    """The exit status: that of the installer."""
    if sys.version_info < (3, 11):
        print("Python 3.11 or newer is needed; name one with `make PYTHON=python3.12 ...`")
        return 1
    folder, files = Path(sys.argv[1]), sys.argv[2:]
    python = folder / "bin" / "python"
    new = not python.exists()
    if new and not make_environment(folder):
        return 1
    print(f"installing {', '.join(files)}; the first time takes a few minutes", flush=True)
    index = CPU_INDEX if wants_cpu() else None
    if index and not reachable(index):
        print(f"{CPU_INDEX} is out of reach; torch comes from the default index", flush=True)
        index = None
        uv = None
    else:
        uv = uv_command()
    status = subprocess.run(command(python, files, index, uv), check=False).returncode
    if new and not status:
        compile_served(python)
    return status


def command(python: Path, files: list[str], index: str | None, uv: str | None) -> list[str]:
    """What installs the files; `index` has torch without CUDA."""
    requirements = [word for file in files for word in ("-r", file)]
    indexes = ["--extra-index-url", index] if index else []
    if uv:
        strategy = ["--index-strategy", "unsafe-best-match"] if index else []
        head = [uv, "pip", "install", "--quiet", "--python", str(python), *strategy]
    else:
        # Twice: what is left are errors.
        head = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        # Of 20,000 files a server imports a fifth; see `compile_served`.
        head.append("--no-compile")
    return [*head, *indexes, "-c", CONSTRAINTS, *requirements]


def compile_served(python: Path) -> None:
    """Has Python compile what a server imports, so that its processes need not all do so at the first start.

    What else is used compiles itself where it is imported first.
    """
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPATH": "."}
    words = [str(python), "-c", "import service, text2image.engine.models.loading"]
    subprocess.run(words, env=environment, capture_output=True, check=False)


def wants_cpu() -> bool:
    """Whether torch should come without CUDA: as CPU says, or as there is no NVIDIA GPU."""
    asked = os.environ.get("CPU", "")
    if asked in ("0", "1"):
        return asked == "1"
    return not has_gpu()


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is there."""
    if not any(Path(file).exists() for file in _GPU_FILES):
        return False
    shows = shutil.which("nvidia-smi")
    return (
        not shows or subprocess.run([shows, "-L"], capture_output=True, check=False).returncode == 0
    )


def reachable(url: str) -> bool:
    """Whether an index answers, soon."""
    try:
        # Of this file, and no other scheme.
        with urllib.request.urlopen(f"{url}/torch/", timeout=INDEX_TIMEOUT):  # nosec B310
            return True
    except OSError:
        return False


def uv_command() -> str | None:
    """uv, unless there is none or UV=0."""
    return None if os.environ.get("UV") == "0" else shutil.which("uv")


def make_environment(folder: Path) -> bool:
    """Makes a virtual environment; where Debian's Python lacks what that takes, that is installed first."""
    if _venv(folder):
        return True
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    installed = subprocess.run(["sh", "tools/debian.sh", f"python{version}-venv"], check=False)
    if installed.returncode == 0 and _venv(folder):
        return True
    print(f"{sys.executable} cannot make virtual environments; install python{version}-venv")
    return False


def _venv(folder: Path) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "venv", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
