"""What is in the image, and what it tells the engine that runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.container.runtime import Image
from tests.e2e.harness import ROOT

LARGEST_BYTES = 2_000_000_000
BUILDERS = {"gcc", "cc", "c++", "g++", "clang", "ld", "as", "make", "cmake", "nvcc", "cargo", "go"}


def test_the_engine_is_told_of_ports_volumes_user_and_health(image: Image) -> None:
    config = image.config
    assert set(config["ExposedPorts"]) == {"3000/tcp", "50051/tcp", "8501/tcp"}
    assert set(config["Volumes"]) == {"/pictures", "/cache", "/tmp"}
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "text2image.healthcheck"]
    # By number, for engines that refuse root and know no names.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])


def test_labels_tell_what_it_is(image: Image) -> None:
    labels = image.config["Labels"]
    told = {name: labels[f"org.opencontainers.image.{name}"] for name in ("title", "licenses")}
    assert told == {"title": "text2image", "licenses": "MIT"}
    assert labels["org.opencontainers.image.version"] not in ("", "unknown")
    assert labels["org.opencontainers.image.revision"] == image.revision


def test_it_is_no_larger_than_two_gigabytes(image: Image) -> None:
    assert image.size() <= LARGEST_BYTES


def test_nothing_in_it_builds_programs(image: Image) -> None:
    folders = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "app/.venv/bin")
    programs = {path.name for folder in folders for path in (image.root / folder).iterdir()}
    assert "python3" in programs
    assert not programs & BUILDERS


def test_it_holds_the_service_and_the_page_alone(image: Image) -> None:
    names = {path.name for path in (image.root / "app").iterdir()}
    assert {"service.py", "text2image", "frontend", "models"} <= names
    assert not names & {"tests", "training", "loadtests", "tools", "docs", ".git"}


def test_whoever_serves_cannot_change_what_is_served(image: Image) -> None:
    assert {path.stat().st_uid for path in (image.root / "app").rglob("*.py")} == {0}


def test_whoever_serves_can_read_all_of_it(image: Image) -> None:
    files = (path for path in (image.root / "app").rglob("*") if path.is_file())
    assert [path for path in files if not path.stat().st_mode & 0o004] == []


def test_what_serves_is_compiled(image: Image) -> None:
    """Nobody who serves can write bytecode, so that every start would compile it anew."""
    app = image.root / "app"
    (packages,) = (app / ".venv/lib").glob("python3*/site-packages")
    served = [
        *(app / "text2image").rglob("*.py"),
        *(packages / "bentoml").rglob("*.py"),
        packages / "torch/nn/functional.py",
        packages / "transformers/models/clip/modeling_clip.py",
        packages / "diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py",
        packages / "diffusers/schedulers/scheduling_ddpm.py",
        packages / "streamlit/web/server/server.py",
    ]
    assert [path for path in served if not _is_compiled(path)] == []


def _is_compiled(path: Path) -> bool:
    return any((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc"))


def test_the_bill_of_materials_names_what_is_installed(image: Image) -> None:
    bill = json.loads((image.root / "app/sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    named = {_normal(part["name"]): part["version"] for part in bill["components"]}
    assert named == _installed(image.root)


def test_it_holds_the_versions_that_were_tested(image: Image) -> None:
    pinned = re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "requirements/constraints.txt").read_text(), re.M
    )
    installed = _installed(image.root)
    differing = {
        name: (version, installed[_normal(name)])
        for name, version in pinned
        if _normal(name) in installed and installed[_normal(name)] != version
    }
    assert differing == {}


def _installed(root: Path) -> dict[str, str]:
    """Version by name of what pip has installed for the service."""
    (packages,) = (root / "app/.venv/lib").glob("python3*/site-packages")
    folders = [path.name.removesuffix(".dist-info") for path in packages.glob("*.dist-info")]
    return {_normal(name): version for name, version in (f.rsplit("-", 1) for f in folders)}


def _normal(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
