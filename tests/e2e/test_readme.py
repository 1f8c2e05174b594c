"""The README does what it says: its code blocks are run as they stand, against a server on the default ports."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.e2e.harness import ROOT, Server
from text2image.net.tls import Tls
from tools.settings_table import with_table

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def blocks(language: str, start: str = "") -> list[str]:
    found = [text for kind, text in BLOCKS if kind == language and start in text]
    assert found, f"the README has no {language} block with {start!r}"
    return found


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_examples_run_and_leave_their_pictures(
    known_server: Server, tmp_path: Path
) -> None:
    for block in blocks("python"):
        run([sys.executable, "-c", block], tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"penguin.png", "rocket.png"}


def test_the_curl_examples_run_and_answer_with_a_picture(
    known_server: Server, tmp_path: Path
) -> None:
    for block in blocks("bash", "curl -s"):
        answer = json.loads(run(["bash", "-c", block], tmp_path))
        picture = answer.get("image_base64") or answer["data"][0]["b64_json"]
        assert picture.startswith("iVBORw0KGgo")


def test_the_command_draws_and_prints_where_to(known_server: Server, tmp_path: Path) -> None:
    for block in blocks("bash", '-m text2image "'):
        _python, *words = shlex.split(block)
        printed = run([sys.executable, *words], tmp_path)
        assert (tmp_path / printed.strip()).read_bytes().startswith(b"\x89PNG")


def test_the_answer_shown_has_the_fields_of_a_real_one(
    known_server: Server, tmp_path: Path
) -> None:
    (shown,) = (json.loads(block) for block in blocks("json"))
    real = json.loads(run(["bash", "-c", blocks("bash", "/generate")[0]], tmp_path))
    assert set(shown) == set(real)


def test_the_grpcurl_example_names_a_method_and_fields_that_reflection_knows(
    known_server: Server,
) -> None:
    words = shlex.split(blocks("bash", "grpcurl")[0].replace("\\\n", " "))
    service, method = words[-1].split("/")
    with grpc.insecure_channel(words[-2]) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        input_type = pool.FindServiceByName(service).methods_by_name[method].input_type
        json_format.Parse(words[words.index("-d") + 1], GetMessageClass(input_type)())


def test_the_certificates_of_the_example_can_be_served_with(tmp_path: Path) -> None:
    run(["bash", "-e", "-c", blocks("bash", "openssl")[0]], tmp_path)
    for name in ("server", "client"):
        Tls(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", tmp_path / "ca.pem").check()


def test_every_make_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z]+)", README)) - {"help"}
    for target in named:
        run(["make", "--dry-run", target], ROOT)


def test_the_table_of_settings_is_up_to_date() -> None:
    assert with_table(README) == README, "run `make docs`"
