"""The documents name only what is there: links, commands, settings. `tests/e2e/test_readme.py` runs their examples."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.documents import DOCUMENTS, README, ROOT, anchors, blocks, code, prose, run
from text2image.core.settings import Settings
from text2image.net.tls import Tls
from tools.settings_table import DOCUMENT as SETTINGS
from tools.settings_table import with_table

DOCS = ROOT / "docs"
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_VARIABLE = re.compile(r"\bT2I_[A-Z0-9_]*[A-Z0-9]\b")
# What clients and tests read beside the settings of a server.
_OTHER_VARIABLES = {
    "T2I_API_KEY",
    "T2I_TEST_DEVICE",
    "T2I_TLS_CA",
    "T2I_TLS_CLIENT_CERT",
    "T2I_TLS_CLIENT_KEY",
}


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


@each_document
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in _LINK.findall(prose(document)):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link} is not there"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_every_document_is_in_the_index_of_documents() -> None:
    index = DOCS / "README.md"
    named = {(DOCS / link).resolve() for link in _LINK.findall(prose(index))}
    assert set(DOCUMENTS) - named == {index}


def test_the_readme_is_short() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


@each_document
def test_every_make_command_exists(document: Path) -> None:
    called = re.compile(r"(?:^|[\s;&])make ([a-z][a-z-]*)", re.MULTILINE)
    for target in {name for text in code(document) for name in called.findall(text)} - {"help"}:
        run(["make", "--dry-run", target], ROOT)


@each_document
def test_every_variable_is_a_setting(document: Path) -> None:
    known = {f"T2I_{name.upper()}" for name in Settings.model_fields} | _OTHER_VARIABLES
    named = {name for text in code(document) for name in _VARIABLE.findall(text)}
    assert named <= known


@each_document
def test_every_module_that_is_called_is_there(document: Path) -> None:
    for text in code(document):
        for module in re.findall(r"python3? -m ([\w.]+)", text):
            assert find_spec(module), module


def test_the_table_of_settings_is_up_to_date() -> None:
    assert with_table(SETTINGS.read_text()) == SETTINGS.read_text(), "run `make docs`"


def test_the_certificates_of_the_example_can_be_served_with(tmp_path: Path) -> None:
    run(["bash", "-e", "-c", blocks(DOCS / "tls-and-browsers.md", "bash", "openssl")[0]], tmp_path)
    for name in ("server", "client"):
        Tls(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", tmp_path / "ca.pem").check()


def test_the_commands_for_keys_make_and_end_keys(tmp_path: Path) -> None:
    (block,) = blocks(DOCS / "keys-and-limits.md", "bash", "text2image.keys")
    script = block.replace(".venv/bin/python", shlex.quote(sys.executable))
    printed = run(["bash", "-e", "-c", script], tmp_path).splitlines()
    assert sum(line.startswith("t2i_") for line in printed) == 3
    listed = [line for line in printed if not line.startswith("t2i_")]
    assert [line.split()[0] for line in listed] == ["NAME", "alice", "grafana", "batch"]
    assert "batch" not in (tmp_path / "keys.json").read_text()
