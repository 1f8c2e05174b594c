"""`make bento`: builds the Bento, for a CPU or for GPUs, with the embedded model or another one in it.

Prints the new Bento's tag. bentofile.yaml says all that is the same in each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from text2image.core.model_names import name_of
from text2image.core.settings import EMBEDDED_MODEL, MODELS, Settings
from text2image.engine.lazy import hush
from text2image.engine.runtimes import SHIPPED

ROOT = Path(__file__).parents[1]
VARIANTS = ("cpu", "cuda")


def config_of(
    variant: str = "cpu", model: str = EMBEDDED_MODEL, root: Path = ROOT
) -> dict[str, Any]:
    """The build options of bentofile.yaml with what this Bento does otherwise.

    Args:
        model: the name of a folder in `models`.
    """
    config: dict[str, Any] = yaml.safe_load((root / "bentofile.yaml").read_text())
    config["python"]["requirements_txt"] = f"requirements/{variant}.txt"
    config["labels"].update(variant=variant, model=model)
    embedded = f"models/{EMBEDDED_MODEL}/**"
    if variant != "cpu":
        config["exclude"].append(f"models/{model}/{SHIPPED}/**")
    config["include"] = [
        f"models/{model}/**" if pattern == embedded else pattern for pattern in config["include"]
    ]
    return config


def bring(model: str, revision: str | None, models: Path = MODELS) -> str:
    """Lays a model of the hub, or a folder, into `models`, fetched if need be; returns its name there.

    Raises:
        OSError: there is no such model; the text says why.
    """
    hush()
    # Here, since it imports torch, which takes seconds and only a model from outside needs.
    from text2image.engine.models.loading import locate

    settings = Settings(model=model, model_revision=revision)
    source = locate(settings, lambda detail: print(detail, file=sys.stderr))
    name = name_of(model)
    target = models / name
    if source != target:
        shutil.rmtree(target, ignore_errors=True)
        # The hub's cache is of links.
        shutil.copytree(source, target)
    return name


def convert(model: str, models: Path = MODELS) -> None:
    """Lays what OpenVINO reads beside a model in `models`, so that no start of the Bento has to convert it."""
    command = [sys.executable, "-m", "text2image.engine.runtimes.conversion", str(models / model)]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        print(f"{model} is not converted for OpenVINO: {last}", file=sys.stderr)


def build(variant: str, model: str, root: Path = ROOT) -> str:
    """Builds a Bento from a source tree into BentoML's store; returns its tag."""
    # Of the two builders that BentoML has, the one that takes a Dockerfile as it is.
    os.environ["BENTOML_ENABLE_FEATURES"] = "no_image"
    import bentoml

    return str(bentoml.build(**config_of(variant, model, root), build_ctx=str(root)).tag)


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--variant", choices=VARIANTS, default="cpu")
    parser.add_argument(
        "--model", default=EMBEDDED_MODEL, help="id on the hub, or folder in diffusers format"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model of the hub")
    return parser


def build_asked(asked: argparse.Namespace) -> str:
    """Builds what the command line asks for; returns its tag.

    Raises:
        SystemExit: there is no such model; one line says why.
    """
    try:
        embedded = asked.model == EMBEDDED_MODEL
        model = EMBEDDED_MODEL if embedded else bring(asked.model, asked.revision)
    except OSError as error:
        raise SystemExit(f"text2image: {error}") from None
    if asked.variant == "cpu":
        convert(model)
    return build(asked.variant, model)


if __name__ == "__main__":
    print(build_asked(arguments(__doc__).parse_args()))
