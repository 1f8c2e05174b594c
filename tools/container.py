"""`make container`: builds a Bento, and its image with whatever there is that builds images.

`bentoml containerize` does the work; here it is chosen what with, and what BentoML has no setting for is passed on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

from tools.bento import ROOT, arguments, build_asked

# Builders that BentoML knows, and the command by which each shows that it can work here.
BACKENDS = {
    "docker": ("docker", "version", "--format", "{{.Server.Version}}"),
    "podman": ("podman", "info"),
    "buildah": ("buildah", "info"),
}
# Images in the OCI's own format have no health check.
_FORMAT = {"podman": ("format=docker",), "buildah": ("format=docker",)}


def works(command: Sequence[str]) -> bool:
    """Whether the command is there and succeeds."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def pick_backend(works: Callable[[Sequence[str]], bool] = works) -> str:
    """The first builder that works.

    Raises:
        SystemExit: there is none; one line says what would do.
    """
    for name, command in BACKENDS.items():
        if works(command):
            return name
    raise SystemExit(
        "text2image: nothing here builds images: start Docker, or install podman or buildah "
        "(Debian has both: apt-get install buildah)"
    )


def command_of(tag: str, image: str, backend: str, options: Sequence[str]) -> list[str]:
    """What builds the image of a Bento.

    Args:
        options: of the builder, as `bentoml containerize --opt` takes them.
    """
    labels = (f"build-arg=VERSION={tag.partition(':')[2]}", f"build-arg=REVISION={revision()}")
    opts = [*_FORMAT.get(backend, ()), *labels, *options]
    return [
        *(sys.executable, "-m", "bentoml", "containerize", tag),
        *("--backend", backend, "--image-tag", image),
        *(word for option in opts for word in ("--opt", option)),
    ]


def revision() -> str:
    """The commit that the source tree stands at, as far as there is one."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def main() -> int:
    """The exit status of the builder."""
    parser = arguments(__doc__)
    parser.add_argument("--backend", choices=BACKENDS, help="the first that works if left out")
    parser.add_argument("--image", help="name and tag; text2image and the variant if left out")
    parser.add_argument("--opt", action="append", default=[], help="option of the builder")
    asked = parser.parse_args()
    backend = asked.backend or pick_backend()
    tag = build_asked(asked)
    image = asked.image or f"text2image:{asked.variant}"
    # BentoML takes a Dockerfile of ours only from below the folder that it is called in.
    with tempfile.TemporaryDirectory() as folder:
        status = subprocess.run(
            command_of(tag, image, backend, asked.opt),
            cwd=folder,
            env={**os.environ, "TMPDIR": folder},
            check=False,
        ).returncode
    if status:
        print(f"text2image: {backend} could not build {image}; see above", file=sys.stderr)
    else:
        print(f"{image} is built by {backend}; docs/container.md tells how to run it")
    return status


if __name__ == "__main__":
    sys.exit(main())
