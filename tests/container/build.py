"""Builds the image without a Docker daemon and without a registry: `python -m tests.container.build FOLDER`.

The base image is Debian's own, by debootstrap; `make container`'s tool then builds with buildah, in a chroot. All of it
lies in the folder, and needs root. Where pip finds its packages on this machine, the build finds them too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

BASE = "localhost/text2image-base"
IMAGE = "localhost/text2image:cpu"
SUITE = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
NEEDED = ("buildah", "debootstrap", "runc")
WEIGHTS = Path(__file__).parents[2] / "models"
_AUTHORITIES = Path("etc/ssl/certs/ca-certificates.crt")
_PIP_SETTING = re.compile(r"(?:global|:env:)\.([a-z-]+)='(.*)'")
# Debian's packages and Python's come over the network, which may fail once.
_ATTEMPTS = 2


def storage(folder: Path) -> dict[str, str]:
    """The environment in which buildah keeps its images in the folder, and everybody else BentoML's store."""
    return {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "BUILDAH_ISOLATION": "chroot",
        "BENTOML_HOME": str(folder / "bentoml"),
    }


def run(folder: Path, *words: str) -> str:
    """Runs a command with the folder's storage; returns what it prints.

    Raises:
        CalledProcessError: it failed; why, it told standard error.
    """
    done = subprocess.run(words, env=storage(folder), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def make_base(folder: Path) -> None:
    """The base image: a minimal Debian with Python, which trusts whom this machine trusts."""
    root = folder / "debian"
    shutil.rmtree(root, ignore_errors=True)
    run(
        folder,
        *("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)),
        "http://deb.debian.org/debian",
    )
    for spare in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / spare)
    if (Path("/") / _AUTHORITIES).exists():
        shutil.copy(Path("/") / _AUTHORITIES, root / _AUTHORITIES)
    lines = [f"{name} = {value}" for name, value in pip_settings().items()]
    (root / "etc/pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    container = run(folder, "buildah", "from", "scratch")
    run(folder, "buildah", "add", "--quiet", container, str(root), "/")
    run(folder, "buildah", "commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(root)


def pip_settings() -> dict[str, str]:
    """How pip is set up on this machine, without what only changes which versions it takes: ours are all named."""
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=True,
    )
    settings = dict(_PIP_SETTING.findall(shown.stdout))
    settings.pop("constraint", None)
    # An index that is out of reach would otherwise be asked six times for each package.
    return {**settings, "retries": "0"}


def pip_folders() -> list[Path]:
    """Folders on this machine that pip takes packages from."""
    words = " ".join(pip_settings().values()).split()
    paths = [Path(word.removeprefix("file://")) for word in words]
    return [path for path in paths if path.is_absolute() and path.is_dir()]


def make_image(folder: Path) -> None:
    """The image, of weights that nobody else may read: so safetensors leaves those that were trained or saved here."""
    for weights in WEIGHTS.rglob("*.safetensors"):
        weights.chmod(0o600)
    volumes = [f"volume={path}:{path}:ro" for path in pip_folders()]
    options = (f"build-arg=BASE_IMAGE={BASE}", "network=host", "isolation=chroot", *volumes)
    subprocess.run(
        [
            *(sys.executable, "-m", "tools.container", "--backend", "buildah", "--image", IMAGE),
            *(word for option in options for word in ("--opt", option)),
        ],
        env=storage(folder),
        check=True,
    )


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bentoml").mkdir(exist_ok=True)
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/run"\n'
    )
    for make in (make_base, make_image):
        for left in reversed(range(_ATTEMPTS)):
            try:
                make(folder)
                break
            except subprocess.CalledProcessError:
                if not left:
                    raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
