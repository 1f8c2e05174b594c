"""The contracts that the project began with: its own client word for word, and its curl line."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.e2e.harness import ROOT, Server, eventually
from text2image.net import text2image_pb2 as pb

CURL = r"""curl -sS -X POST http://localhost:8000/generate \
     -H "Content-Type: application/json" \
     -d '{"context": "cyberpunk", "text": "a futuristic city at night"}'
"""
CLIENT = Path(__file__).with_name("seed_client.py")
SHOWN = "shown.png"


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder with stubs as any user would generate them."""
    arguments = [f"-I{ROOT}/proto", f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *arguments, "text2image.proto"], check=True
    )
    return tmp_path


@pytest.fixture
def viewer(tmp_path: Path) -> Path:
    """A folder for PATH whose picture viewer notes what it is shown, where a screen would be needed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "xdg-open"
    script.write_text(f'#!/bin/sh\ncp "$1" "{tmp_path}/{SHOWN}"\n')
    script.chmod(0o755)
    return folder


def test_the_first_client_works_word_for_word(
    known_server: Server, stubs: Path, viewer: Path
) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(stubs),
        "PATH": f"{viewer}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        [sys.executable, str(CLIENT)],
        cwd=stubs,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    saved = Path(done.stdout.removeprefix("Image also saved to: ").strip())
    assert saved.parent == known_server.pictures
    assert re.fullmatch(r"fantasy_art_dragon_flying_.*_\d{8}_\d{6}\w*\.png", saved.name)
    assert Image.open(saved).size == (128, 128)
    eventually((stubs / SHOWN).exists, "the viewer was shown the picture")


def test_the_first_curl_line_works(server: Server) -> None:
    done = subprocess.run(
        ["sh", "-c", CURL.replace("http://localhost:8000", server.url)],
        capture_output=True,
        check=True,
        timeout=120,
    )
    answer = httpx.Response(200, content=done.stdout).json()
    assert answer["status_code"] == 200
    assert answer["message"] == "Image generated successfully"
    saved = Path(answer["image_path"])
    assert re.fullmatch(r"cyberpunk_futuristic_city_.*\d{8}_\d{6}\w*\.png", saved.name)
    png = base64.b64decode(answer["image_base64"])
    assert png == saved.read_bytes()
    assert Image.open(io.BytesIO(png)).size == (128, 128)


def test_names_and_numbers_of_the_first_contract_never_change() -> None:
    request = pb.ImageRequest.DESCRIPTOR.fields_by_name
    response = pb.ImageResponse.DESCRIPTOR.fields_by_name
    assert pb.DESCRIPTOR.package == ""
    assert {name: request[name].number for name in ("context", "text")} == {"context": 1, "text": 2}
    first_four = ["status_code", "message", "image_base64", "image_path"]
    assert [response[name].number for name in first_four] == [1, 2, 3, 4]
    assert min(field.number for name, field in response.items() if name not in first_four) > 4
