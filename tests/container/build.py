"""Builds the image without a Docker daemon and without a registry: `python -m tests.container.build FOLDER`.

The base image is Debian's own, by debootstrap; `make container`'s tool then builds with buildah, in a chroot. All of it
lies in the folder, and needs root. Where pip finds its packages on this machine, the build finds them too.

Without a folder only Debian's files are fetched, and kept for all builds to come. That needs Python alone, so that
`make test` can have it done while it installs the rest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

BASE = "localhost/text2image-base"
IMAGE = "localhost/text2image:cpu"
SUITE = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
NEEDED = ("buildah", "debootstrap", "runc")
ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "models"
# The files of the base image.
DEBIAN = ROOT / "build" / "debian.tar"
# Not everybody's PATH has the commands of administrators.
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_AUTHORITIES = Path("etc/ssl/certs/ca-certificates.crt")
_PIP_SETTING = re.compile(r"(?:global|:env:)\.([a-z-]+)='(.*)'")
# Debian's packages and Python's come over the network, which may fail once.
_ATTEMPTS = 2


def missing() -> str:
    """What building lacks here; empty if nothing."""
    absent = [command for command in NEEDED if shutil.which(command, path=PATH) is None]
    if absent:
        return f"needs Debian's {', '.join(absent)}"
    return "" if os.geteuid() == 0 else "only root may build and run containers as they do"


def storage(folder: Path) -> dict[str, str]:
    """The environment in which buildah keeps its images in the folder, and everybody else BentoML's store."""
    return {
        **os.environ,
        "PATH": PATH,
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


def fetch_debian() -> None:
    """A minimal Debian with Python."""
    DEBIAN.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DEBIAN.parent) as folder:
        root = Path(folder, "debian")
        run(
            Path(folder),
            *("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)),
            "http://deb.debian.org/debian",
        )
        for spare in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(root / spare)
        part = Path(folder, DEBIAN.name)
        run(Path(folder), "tar", "--create", f"--file={part}", f"--directory={root}", ".")
        part.replace(DEBIAN)


def make_base(folder: Path) -> None:
    """The base image: Debian's files, which trust whom this machine trusts."""
    if not DEBIAN.exists():
        fetch_debian()
    root = folder / "debian"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    run(folder, "tar", "--extract", f"--file={DEBIAN}", f"--directory={root}")
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


def insist(make: Callable[[], None]) -> None:
    """Does it, and once more if it fails."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            return make()
        except subprocess.CalledProcessError:
            if not left:
                raise
    return None


def build(folder: Path) -> None:
    """Base and image, in a storage of their own in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bentoml").mkdir(exist_ok=True)
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/run"\n'
    )
    insist(lambda: make_base(folder))
    insist(lambda: make_image(folder))


if __name__ == "__main__":
    if sys.argv[1:]:
        build(Path(sys.argv[1]))
    elif not missing():
        insist(fetch_debian)
