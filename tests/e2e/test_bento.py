"""The Bento: what is in it, and a server that BentoML starts from its store, away from the source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.e2e.harness import ROOT, Server, eventually, free_port, serving
from tests.integration.engine.pipelines import save_pipeline

# What serving needs; the rest of a source tree tests, trains, measures or explains.
PARTS = {
    "bentofile.yaml",
    "deploy",
    "frontend",
    "models",
    "proto",
    "requirements",
    "service.py",
    "text2image",
}
LARGEST_BYTES = 60_000_000
HUB_MODEL = "somebody/small-sd"


def build(home: Path, *words: str, root: Path = ROOT, **variables: str) -> tuple[str, Path]:
    """Builds a Bento into a store; returns its tag and its folder."""
    home.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tools.bento", *words],
        cwd=root,
        env={**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    tag = done.stdout.splitlines()[-1]
    name, version = tag.split(":")
    return tag, home / "bentos" / name / version


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bento")


@pytest.fixture(scope="module")
def bento(shop: Path) -> tuple[str, Path]:
    return build(shop / "bentoml")


@pytest.fixture(scope="module")
def page_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def shipped(shop: Path, bento: tuple[str, Path], page_port: int) -> Iterator[Server]:
    """A server of the Bento and its page, started where there is no source tree."""
    tag, _ = bento
    elsewhere = shop / "elsewhere"
    elsewhere.mkdir()

    def launcher(python: str, *words: str) -> list[str]:
        options = words[words.index("--port") :]
        start = [python, "-m", "bentoml", "serve", tag, *options]
        return ["env", "--chdir", str(elsewhere), *start]

    settings = {"PYTHONPATH": "", "T2I_PAGE_PORT": str(page_port)}
    with serving(Server(shop, launcher=launcher, **settings)) as server:
        yield server


def test_it_holds_what_serving_needs_and_nothing_else(bento: tuple[str, Path]) -> None:
    source = bento[1] / "src"
    assert {path.name for path in source.iterdir()} == PARTS
    files = [path for path in source.rglob("*") if path.is_file()]
    assert not [path for path in files if "__pycache__" in path.parts]
    held = {path.relative_to(source) for path in files if path.suffix in {".py", ".css", ".toml"}}
    served = ("text2image", "frontend")
    wanted = {
        path.relative_to(ROOT)
        for part in served
        for suffix in ("py", "css", "toml")
        for path in (ROOT / part).rglob(f"*.{suffix}")
    }
    assert held == wanted | {Path("service.py")}
    assert {path.name for path in (source / "models").iterdir()} == {"embedded"}
    assert sum(path.stat().st_size for path in files) < LARGEST_BYTES


def test_its_requirements_are_those_of_server_and_page(bento: tuple[str, Path]) -> None:
    required = (bento[1] / "env/python/requirements.txt").read_text()
    for line in (
        "torch==",
        "bentoml==",
        "streamlit==",
        "--extra-index-url https://download.pytorch",
    ):
        assert line in required
    assert "pytest" not in required


def test_it_is_served_from_the_store_over_both_transports(
    shipped: Server, bento: tuple[str, Path]
) -> None:
    answer = httpx.post(
        f"{shipped.url}/generate", json={"text": "a cat", "steps": 2, "seed": 1}, timeout=120
    )
    assert answer.json()["message"] == "Image generated successfully"
    with shipped.client() as client:
        assert client.model().id == "embedded"
        assert client.generate("a dog", steps=2)[0].width == 128
    for process in (shipped.runner(), *shipped.gateways()):
        assert process.cwd().startswith(str(bento[1])), "it is the Bento's code that runs"


def test_the_page_is_shown_beside_it_again_when_it_ends_and_ends_with_it(
    shipped: Server, page_port: int
) -> None:
    def page() -> psutil.Process | None:
        try:
            if httpx.get(f"http://127.0.0.1:{page_port}/_stcore/health").status_code != 200:
                return None
        except httpx.TransportError:
            return None
        family = psutil.Process(shipped.process.pid).children()
        return next(process for process in family if "streamlit" in process.cmdline())

    first = eventually(page, "the page is shown")
    first.kill()
    second = eventually(
        lambda: page() if not first.is_running() else None, "the page is shown again"
    )
    assert second is not None
    assert shipped.stop() == 0
    assert not second.is_running()


def test_a_model_of_the_hub_takes_the_place_of_the_embedded_one(tmp_path: Path) -> None:
    """As the hub's cache has it; a Bento draws with what it was built with, and needs no hub."""
    tree = tmp_path / "tree"
    unneeded = shutil.ignore_patterns(".*", "build", "tests", "training", "docs", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=unneeded)
    shutil.copytree(ROOT / "frontend/.streamlit", tree / "frontend/.streamlit")
    cached = tmp_path / "hub/models--somebody--small-sd"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (cached / "snapshots").mkdir(parents=True)
    save_pipeline("sd1", tmp_path).rename(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    hub = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tree)}
    words = ("--variant", "cuda", "--model", HUB_MODEL)
    _, folder = build(tmp_path / "bentoml", *words, root=tree, **hub)
    source = folder / "src"
    assert [path.name for path in (source / "models").iterdir()] == ["somebody"]
    assert yaml.safe_load((folder / "bento.yaml").read_text())["labels"] == {
        "variant": "cuda",
        "model": HUB_MODEL,
    }
    assert "download.pytorch.org" not in (folder / "env/python/requirements.txt").read_text()
    found = subprocess.run(
        [sys.executable, "-m", "text2image.prefetch"],
        cwd=source,
        env={**os.environ, "HF_HOME": str(tmp_path / "empty"), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.stdout.strip() == str(source / "models" / HUB_MODEL), found.stderr
