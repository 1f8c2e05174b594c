"""Models of a hub: what is fetched, what is read first, and what is said of those that cannot be drawn with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.integration.engine.hub import COMMIT, hub

# In a process of its own, since the hub's address is read when its client is imported.
SCRIPT = """
import json, sys
from text2image.core.settings import Settings
from text2image.engine.models.loading import find, load_model, locate

def outcome(function, model):
    try:
        return str(function(Settings(model=model, runtime="torch")))
    except OSError as error:
        return str(error)

print(json.dumps({
    "checked": outcome(lambda settings: find(settings, print), "some/half"),
    **{model: outcome(lambda settings: locate(settings, lambda detail: None), model)
       for model in ("some/video", "some/file", "some/half", "some/nothing")},
    "loaded": outcome(lambda settings: load_model(settings, 0, lambda detail: None).info.id, "some/half"),
}))
"""


@pytest.fixture(scope="module")
def asked(
    pipeline_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], list[str]]:
    """What was said of each model, and what was fetched."""
    folder = tmp_path_factory.mktemp("hub")
    models = folder / "models"
    (models / "some" / "video").mkdir(parents=True)
    index = json.dumps({"_class_name": "MochiPipeline", "vae": ["diffusers", "AutoencoderKLMochi"]})
    (models / "some" / "video" / "model_index.json").write_text(index)
    (models / "some" / "video" / "vae").mkdir()
    (models / "some" / "video" / "vae" / "diffusion_pytorch_model.safetensors").write_text("large")
    (models / "some" / "file").mkdir()
    (models / "some" / "file" / "model.safetensors").write_text("large")
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder("sd1"), dtype=torch.float16)
    pipeline.save_pretrained(models / "some" / "half", variant="fp16")
    with hub(models) as running:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={
                **os.environ,
                "HF_ENDPOINT": running.url,
                "HF_HOME": str(folder / "home"),
                "HF_HUB_OFFLINE": "0",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), list(running.fetched)


def test_the_class_is_read_before_weights_are_fetched(
    asked: tuple[dict[str, str], list[str]],
) -> None:
    said, fetched = asked
    assert "model_index.json: it is a MochiPipeline; this server draws with" in said["some/video"]
    assert said["some/video"].endswith("; nothing was fetched")
    assert [each for each in fetched if "/video/" in each] == ["some/video/model_index.json"]


def test_a_model_in_half_precision_alone_is_fetched_and_loaded(
    asked: tuple[dict[str, str], list[str]],
) -> None:
    said, fetched = asked
    assert said["some/half"].endswith(COMMIT)
    assert "some/half/unet/diffusion_pytorch_model.fp16.safetensors" in fetched
    assert said["loaded"] == "some/half"


def test_a_model_that_is_not_fetched_yet_is_checked_without_fetching_it(
    asked: tuple[dict[str, str], list[str]],
) -> None:
    said, fetched = asked
    assert said["checked"].startswith("some/half: is not fetched yet")
    # Everything else came for the sake of those who loaded it.
    assert len(fetched) == len(set(fetched))


def test_what_a_hub_does_not_have_is_told(asked: tuple[dict[str, str], list[str]]) -> None:
    said, fetched = asked
    assert "has no model_index.json, so it is not in diffusers' format" in said["some/file"]
    assert "the hub knows no such model" in said["some/nothing"]
    assert not [each for each in fetched if "/file/" in each]
