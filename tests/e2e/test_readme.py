"""The documents do what they say: their examples are run as they stand, against a server on the default ports."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from PIL import Image

from tests.documents import README, ROOT, blocks, run
from tests.e2e.harness import Server

API = ROOT / "docs" / "api.md"
JOBS = ROOT / "docs" / "jobs.md"
COMMAND = ROOT / "docs" / "page-and-cli.md"


@pytest.mark.parametrize(
    ("document", "pictures"),
    [
        (README, {"apple.png", "penguin.png", "rocket.png"}),
        (API, {"apple-0.png", "apple-1.png", "fox.png"}),
        (JOBS, set()),
    ],
)
def test_the_python_examples_run_and_leave_their_pictures(
    known_server: Server, tmp_path: Path, document: Path, pictures: set[str]
) -> None:
    for block in blocks(document, "python"):
        run([sys.executable, "-c", block], tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == pictures


@pytest.mark.parametrize("document", [README, API])
def test_the_curl_examples_run_and_answer_with_a_picture(
    known_server: Server, tmp_path: Path, document: Path
) -> None:
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "fox.jpg")
    for block in blocks(document, "bash", "curl -s"):
        answer = json.loads(run(["bash", "-c", block], tmp_path))
        told = answer.get("image_base64") or answer.get("data") or answer["images"]
        picture = told if isinstance(told, str) else told[0]
        picture = picture["b64_json"] if isinstance(picture, dict) else picture
        assert picture.startswith("iVBORw0KGgo")


@pytest.mark.parametrize("document", [README, COMMAND])
def test_the_command_draws_and_prints_where_to(
    known_server: Server, tmp_path: Path, document: Path
) -> None:
    for block in blocks(document, "bash", '-m text2image "'):
        _python, *words = shlex.split(block)
        printed = run([sys.executable, *words], tmp_path)
        assert (tmp_path / printed.strip()).read_bytes().startswith(b"\x89PNG")


def test_the_answer_shown_has_the_fields_of_a_real_one(
    known_server: Server, tmp_path: Path
) -> None:
    (shown,) = (json.loads(block) for block in blocks(README, "json"))
    real = json.loads(run(["bash", "-c", blocks(README, "bash", "/generate")[0]], tmp_path))
    assert set(shown) == set(real)


def test_the_grpcurl_example_names_a_method_and_fields_that_reflection_knows(
    known_server: Server,
) -> None:
    words = shlex.split(blocks(API, "bash", "grpcurl")[0].replace("\\\n", " "))
    service, method = words[-1].split("/")
    with grpc.insecure_channel(words[-2]) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        input_type = pool.FindServiceByName(service).methods_by_name[method].input_type
        json_format.Parse(words[words.index("-d") + 1], GetMessageClass(input_type)())
