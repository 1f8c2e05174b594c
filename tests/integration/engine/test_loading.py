"""What a model's setting may name, and what is said when it names nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.integration.engine.conftest import settings_for
from text2image.engine.models.contract import Model
from text2image.engine.models.hub import why_not_fetched
from text2image.engine.models.loading import (
    _STRIDE_BYTES,
    _WHOLE_BYTES,
    EMBEDDED_PATH,
    load_model,
    revision_of,
)


def test_the_embedded_model_knows_its_limits(embedded: Model) -> None:
    info = embedded.info
    assert (info.id, info.width, info.height) == ("embedded", 128, 128)
    assert info.min_side <= 64 <= info.max_side
    assert info.max_prompt_tokens == 90
    assert info.dtype == "float32"


def test_a_folder_without_a_pipeline_is_named_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"model_index\.json"):
        load_model(settings_for(str(tmp_path)), 0, lambda detail: None)


def test_a_family_that_we_do_not_draw_with_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AuraFlowPipeline"}))
    with pytest.raises(ValueError, match="AuraFlowPipeline"):
        load_model(settings_for(str(tmp_path)), 0, lambda detail: None)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("nobody/nothing", "is not in the cache, and .* T2I_MODEL to a folder"),
        ("what is this?", "neither a folder that is there nor an id of the hub"),
    ],
)
def test_a_model_that_is_nowhere_is_named_with_what_to_do(name: str, advice: str) -> None:
    with pytest.raises(OSError, match=rf"^T2I_MODEL={re.escape(name)}: .*{advice}"):
        load_model(settings_for(name), 0, lambda detail: None)


def test_a_hub_that_refuses_is_told_by_its_reason() -> None:
    response = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))
    for kind, advice in (
        (RepositoryNotFoundError, "knows no such model"),
        (GatedRepoError, "HF_TOKEN"),
        (RevisionNotFoundError, "T2I_MODEL_REVISION"),
        (ConnectionError, "cannot be reached"),
    ):
        refusal = OSError("not cached")
        refusal.__cause__ = (
            kind("refused") if kind is ConnectionError else kind("refused", response=response)
        )
        assert advice in why_not_fetched(refusal)


def test_a_hub_model_is_found_by_its_id_and_revision(
    pipeline_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """In the hub's cache, as `huggingface-cli download` leaves it; nothing is fetched."""
    cached = tmp_path / "hub" / "models--somebody--small-sd"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(pipeline_folder("sd1"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "fp32").write_text(commit)
    script = (
        "from text2image.engine.models.loading import load_model;"
        "from text2image.core.settings import Settings;"
        "print(load_model(Settings(), 0, lambda detail: None).info.id)"
    )
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "T2I_MODEL": "somebody/small-sd",
        "T2I_MODEL_REVISION": "fp32",
        "T2I_RUNTIME": "torch",
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip().endswith("somebody/small-sd"), done.stderr


def test_the_revision_changes_with_the_weights_and_with_nothing_else(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(EMBEDDED_PATH, copy)
    assert revision_of(copy) == revision_of(EMBEDDED_PATH)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert revision_of(copy) != revision_of(EMBEDDED_PATH)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_revision_changes_with_weights_in_the_middle_of_a_file(
    tmp_path: Path, share: float
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(EMBEDDED_PATH, copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.chmod(0o644)
    spoil(weights, int(share * weights.stat().st_size), 1)
    assert revision_of(copy) != revision_of(EMBEDDED_PATH)


def test_the_revision_changes_with_any_part_of_weights_that_are_too_large_to_read_whole(
    tmp_path: Path,
) -> None:
    weights = tmp_path / "unet.safetensors"
    with weights.open("wb") as file:
        file.truncate(4 * _WHOLE_BYTES + 12345)
    revisions = [revision_of(tmp_path)]
    for start in (_WHOLE_BYTES + 1, 2 * _WHOLE_BYTES + _STRIDE_BYTES // 2):
        spoil(weights, start, _STRIDE_BYTES)
        revisions.append(revision_of(tmp_path))
    spoil(weights, weights.stat().st_size - 1, 1)
    revisions.append(revision_of(tmp_path))
    assert len(set(revisions)) == len(revisions)


def spoil(weights: Path, start: int, count: int) -> None:
    with weights.open("r+b") as file:
        file.seek(start)
        data = file.read(count)
        file.seek(start)
        file.write(bytes(byte ^ 1 for byte in data))


def test_the_revision_of_a_model_from_the_hub_changes_with_its_commit(tmp_path: Path) -> None:
    revisions = set()
    for folder in ("snapshots/1234", "snapshots/5678", "mine/1234", "mine/5678"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model_index.json").write_text("{}")
        revisions.add(revision_of(tmp_path / folder))
    assert len(revisions) == 3
