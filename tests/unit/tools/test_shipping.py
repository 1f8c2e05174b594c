"""What `make bento` and `make container` decide before others do the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.harness import ROOT
from text2image.core.settings import brought_model
from tools.bento import VARIANTS, bring, config_of
from tools.container import BACKENDS, command_of, pick_backend, works


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_a_set_of_requirements(variant: str) -> None:
    config = config_of(variant)
    assert config["labels"] == {"variant": variant, "model": "embedded"}
    requirements = ROOT / config["python"]["requirements_txt"]
    assert requirements.stem == variant
    lines = requirements.read_text().splitlines()
    assert {f"-r {part}.txt" for part in ("serve", "page", "redis", "s3", "otlp")} <= set(lines)
    assert any("whl/cpu" in line for line in lines) == (variant == "cpu")
    left_out = "models/embedded/openvino/**" in config["exclude"]
    assert left_out == (variant != "cpu"), "what OpenVINO reads is for a CPU"


def test_another_model_takes_the_place_of_the_embedded_one() -> None:
    include = config_of(model="somebody/small")["include"]
    assert "models/somebody/small/**" in include
    assert not [pattern for pattern in include if "embedded" in pattern]


def test_a_folder_is_brought_along_under_its_own_name(tmp_path: Path) -> None:
    source, models = tmp_path / "mine", tmp_path / "models"
    source.mkdir()
    (source / "model_index.json").write_text("{}")
    for _ in range(2):
        assert bring(str(source), None, models) == "mine"
        assert (models / "mine/model_index.json").is_file()


def test_a_model_that_is_brought_along_is_what_is_drawn_with(tmp_path: Path) -> None:
    assert brought_model(tmp_path) == "embedded"
    for name in ("somebody/small", "embedded"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "somebody/small/model_index.json").touch()
    assert brought_model(tmp_path) == "somebody/small"
    (tmp_path / "embedded/model_index.json").touch()
    assert brought_model(tmp_path) == "embedded"


def test_the_first_builder_that_works_is_taken() -> None:
    def only(*names: str) -> object:
        return lambda command: command[0] in names

    assert pick_backend(only("docker", "buildah")) == "docker"  # type: ignore[arg-type]
    assert pick_backend(only("buildah")) == "buildah"  # type: ignore[arg-type]


def test_without_a_builder_one_line_says_what_to_install() -> None:
    with pytest.raises(SystemExit, match="apt-get install buildah"):
        pick_backend(lambda command: False)


@pytest.mark.parametrize(
    ("command", "expected"), [(("true",), True), (("false",), False), (("no-such-thing",), False)]
)
def test_a_builder_works_when_it_says_so(command: Sequence[str], expected: bool) -> None:
    assert works(command) is expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_keeps_its_health_check_with_every_builder(backend: str) -> None:
    """Docker's own format has one, the OCI's has none."""
    words = command_of("text2image:abc", "text2image:cpu", backend, ["no-cache"])
    assert ("format=docker" in words) == (backend != "docker")
    assert words[words.index("--image-tag") + 1] == "text2image:cpu"
    assert {"build-arg=VERSION=abc", "no-cache"} <= set(words)
