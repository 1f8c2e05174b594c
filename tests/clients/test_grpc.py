"""Clients that others generate from `proto/` compile as they are, and draw.

TypeScript's comes from npm. Go's and C++'s need Debian's compilers and libraries, and are skipped without them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc_tools
import pytest

from tests.clients.harness import HERE, NODE, kind_of, printed
from tests.e2e.harness import ROOT, Server, eventually

pytestmark = pytest.mark.clients
PROTO = "text2image/v1/image_generation.proto"
GO_LIBRARIES = Path("/usr/share/gocode")
EVENTS = ["queued", "progress", "progress", "image", "completed"]


def run(*words: str | Path, cwd: Path, **variables: str) -> None:
    done = subprocess.run(
        [*map(str, words)],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def generate(folder: Path, *options: str) -> None:
    """Has protoc write a client into a folder; what the proto imports comes along with it."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", *options, PROTO]
    run(*words, f"-I{Path(grpc_tools.__file__).parent / '_proto'}", cwd=folder)


def needed(*commands: str) -> list[str]:
    """Where commands are; skips a test that lacks one."""
    found = [shutil.which(command) for command in commands]
    if missing := [name for name, path in zip(commands, found, strict=True) if path is None]:
        pytest.skip(f"{', '.join(missing)} is not installed; see docs/clients.md")
    return [str(path) for path in found]


def is_idle(server: Server) -> bool:
    with server.engine() as engine:
        return engine.status().active == 0


@pytest.mark.timeout(600)
def test_typescript_over_grpc_and_over_grpc_web(server: Server) -> None:
    build = NODE / "build"
    shutil.rmtree(build, ignore_errors=True)
    plugin = NODE / "node_modules" / ".bin" / "protoc-gen-es"
    options = (f"--plugin=protoc-gen-es={plugin}", "--es_out=gen", "--es_opt=target=ts")
    (build / "gen").mkdir(parents=True)
    generate(build, *options, "--es_opt=import_extension=js")
    shutil.copy(NODE / "v1.ts", build)
    flags = [
        "--strict",
        "--target",
        "es2022",
        "--module",
        "nodenext",
        "--skipLibCheck",
        "--types",
        "node",
    ]
    run(NODE / "node_modules" / ".bin" / "tsc", *flags, "v1.ts", cwd=build)
    got = printed(server, "node", build / "v1.js")
    for each in (got["program"], got["page"]):
        assert each["model"] == "embedded"
        assert each["events"] == EVENTS
        assert kind_of(each["picture"]) == ("PNG", (64, 64))
        assert each["refused"] == "InvalidArgument"
        assert (each["found"], each["cancelled"], each["aborted"]) == (True, "Canceled", "Canceled")
    eventually(lambda: is_idle(server), "what was left has ended")


@pytest.mark.timeout(600)
def test_go(server: Server, tmp_path: Path) -> None:
    go, *_ = needed("go", "protoc-gen-go", "protoc-gen-go-grpc")
    if not (GO_LIBRARIES / "src" / "google.golang.org" / "grpc").is_dir():
        pytest.skip("golang-google-grpc-dev is not installed; see docs/clients.md")
    package = f"M{PROTO}=text2image/v1"
    (tmp_path / "src").mkdir()
    generate(
        tmp_path,
        "--go_out=src",
        f"--go_opt={package}",
        "--go-grpc_out=src",
        f"--go-grpc_opt={package}",
    )
    paths = {"GOPATH": f"{tmp_path}:{GO_LIBRARIES}", "GOCACHE": str(tmp_path / "cache")}
    source, client = HERE / "grpc" / "client.go", tmp_path / "client"
    run(go, "build", "-o", client, source, cwd=tmp_path, GO111MODULE="off", **paths)
    got = printed(server, client)
    assert got["model"] == "embedded"
    assert got["events"] == EVENTS
    assert kind_of(got["picture"]) == ("PNG", (64, 64))
    assert got["refused"] == "InvalidArgument"
    assert (got["found"], got["cancelled"]) == (True, "Canceled")


@pytest.mark.timeout(600)
def test_cpp(server: Server, tmp_path: Path) -> None:
    # The code must fit the library that is installed, so Debian's own protoc writes it.
    protoc, plugin, compiler = needed("protoc", "grpc_cpp_plugin", "g++")
    outputs = ("--cpp_out=.", "--grpc_out=.", f"--plugin=protoc-gen-grpc={plugin}")
    run(protoc, f"-I{ROOT / 'proto'}", *outputs, PROTO, cwd=tmp_path)
    sources = [HERE / "grpc" / "client.cc", *tmp_path.glob("text2image/v1/*.cc")]
    # The headers call libraries that those named bring along.
    libraries = (
        "-Wl,--copy-dt-needed-entries",
        "-lgrpc++",
        "-lgrpc",
        "-lgpr",
        "-lprotobuf",
        "-lpthread",
    )
    client, picture = tmp_path / "client", tmp_path / "picture.png"
    run(compiler, "-std=c++17", "-I.", *sources, "-o", client, *libraries, cwd=tmp_path)
    got: dict[str, Any] = printed(server, client, picture)
    assert got["model"] == "embedded"
    assert got["events"].split() == EVENTS
    assert kind_of(picture.read_bytes())[0] == "PNG"
    invalid_argument, cancelled = 3, 1
    assert got["refused"] == invalid_argument
    assert (got["found"], got["cancelled"]) == (True, cancelled)
