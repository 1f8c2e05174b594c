"""The keys file holds hashes alone, and nothing that happens while it is written loses a key."""

from __future__ import annotations

import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from text2image.core.keys import ApiKey, KeysError, KeysFile, Scope, hash_of
from text2image.core.limits import Allowance, RateLimit
from text2image.ops import keys


@pytest.fixture
def file(tmp_path: Path) -> KeysFile:
    return KeysFile(tmp_path / "keys.json")


def command(file: KeysFile, *words: str) -> None:
    keys.main(["--file", str(file.path), *words])


def make_key(name: str) -> ApiKey:
    return ApiKey(name=name, sha256=hash_of(name), created=datetime.now(UTC))


def names(file: KeysFile) -> list[str]:
    return [key.name for key in file.read().keys]


def test_a_new_key_stands_alone_on_standard_output_and_as_a_hash_in_the_file(
    file: KeysFile, capsys: pytest.CaptureFixture[str]
) -> None:
    command(file, "create", "alice", "--scope", "admin", "--scope", "generate")
    shown, told = capsys.readouterr()
    key = shown.removesuffix("\n")
    assert "\n" not in key
    assert key.startswith("t2i_")
    assert len(key) >= 4 + 256 / 6
    assert "alice" in told
    assert key not in told
    text = file.path.read_text()
    assert key not in text
    (entry,) = file.read().keys
    assert (entry.name, entry.sha256) == ("alice", hash_of(key))
    assert entry.scopes == (Scope.ADMIN, Scope.GENERATE)
    assert entry.sha256 not in repr(file.read())


def test_what_a_key_may_is_what_the_command_said(file: KeysFile) -> None:
    command(file, "create", "plain")
    limits = ("--rate-limit", "6/minute;50/day", "--concurrency", "2")
    command(file, "create", "rich", "--priority", "70", "--expires", "90d", *limits)
    command(file, "create", "free", "--rate-limit", "none", "--concurrency", "none")
    command(file, "create", "until", "--expires", "2999-01-31")
    plain, rich, free, until = file.read().keys
    everybody = Allowance((RateLimit(600, "minute"),), 8)
    assert plain.allowance(everybody) == everybody
    assert plain.scopes == (Scope.GENERATE,)
    assert rich.allowance(everybody) == Allowance((RateLimit(6, "minute"), RateLimit(50, "day")), 2)
    assert rich.priority == 70
    now = datetime.now(UTC)
    assert not rich.has_expired(now + timedelta(days=89))
    assert rich.has_expired(now + timedelta(days=90))
    assert free.allowance(everybody) == Allowance()
    assert until.expires == datetime(2999, 1, 31, tzinfo=UTC)


def test_the_list_shows_all_but_the_secrets(
    file: KeysFile, capsys: pytest.CaptureFixture[str]
) -> None:
    command(file, "create", "alice", "--rate-limit", "6/minute")
    key = capsys.readouterr().out.strip()
    command(file, "list")
    shown = capsys.readouterr().out
    assert "alice" in shown
    assert "6/minute" in shown
    assert key not in shown
    assert hash_of(key) not in shown


def test_a_revoked_key_is_gone_and_a_name_stands_for_one_key_alone(file: KeysFile) -> None:
    command(file, "create", "alice")
    with pytest.raises(SystemExit, match="called alice already"):
        command(file, "create", "alice")
    keys.main(["create", "bob", "--file", str(file.path)])
    command(file, "revoke", "alice")
    assert names(file) == ["bob"]
    with pytest.raises(SystemExit, match="no key called alice"):
        command(file, "revoke", "alice")


@pytest.mark.parametrize(
    "words",
    [
        ("create", "../alice"),
        ("create", "a" * 65),
        ("create", "alice", "--priority", "0"),
        ("create", "alice", "--priority", "101"),
        ("create", "alice", "--rate-limit", "much"),
        ("create", "alice", "--rate-limit", ""),
        ("create", "alice", "--concurrency", "0"),
        ("create", "alice", "--expires", "2020-01-31"),
        ("create", "alice", "--expires", "soon"),
        ("create", "alice", "--scope", "everything"),
    ],
    ids=" ".join,
)
def test_a_bad_word_makes_no_key(file: KeysFile, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as end:
        command(file, *words)
    assert end.value.code == 2
    assert not file.path.exists()


def test_the_file_is_its_owners_alone_and_stays_open_to_whom_it_was_opened(file: KeysFile) -> None:
    file.add(make_key("alice"))
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    file.path.chmod(0o640)
    file.add(make_key("bob"))
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o640


def test_many_writers_at_once_lose_nothing(file: KeysFile) -> None:
    wanted = [f"key-{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda name: KeysFile(file.path).add(make_key(name)), wanted))
    assert sorted(names(file)) == sorted(wanted)


def test_a_write_that_fails_leaves_the_file_as_it_was(
    file: KeysFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.add(make_key("alice"))
    before = file.path.read_bytes()

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(KeysError, match="No space left"):
        file.add(make_key("bob"))
    assert file.path.read_bytes() == before
    assert {path.name for path in file.path.parent.iterdir()} == {"keys.json", "keys.json.lock"}


def test_a_link_to_the_file_stays_one(file: KeysFile, tmp_path: Path) -> None:
    file.add(make_key("alice"))
    link = tmp_path / "link.json"
    link.symlink_to(file.path)
    KeysFile(link).add(make_key("bob"))
    assert link.is_symlink()
    assert names(file) == ["alice", "bob"]


SECRET = "t2i_this-is-no-hash"
BAD_FILES = {
    "no JSON": "keys: alice",
    "another shape": "[]",
    "a key in place of its hash": f'{{"keys": [{{"name": "alice", "sha256": "{SECRET}"}}]}}',
    "an unknown field": '{"keys": [], "version": 2}',
    "a name twice": f'{{"keys": [{make_key("a").model_dump_json()}, '
    f"{make_key('b').model_copy(update={'name': 'a'}).model_dump_json()}]}}",
    "a bad limit": f'{{"keys": [{make_key("a").model_copy(update={"rate_limit": "x"}).model_dump_json()}]}}',
    "an empty limit": f'{{"keys": [{make_key("a").model_copy(update={"rate_limit": ""}).model_dump_json()}]}}',
}


@pytest.mark.parametrize("text", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_told_in_one_line_without_what_is_in_it(file: KeysFile, text: str) -> None:
    file.path.write_text(text)
    with pytest.raises(KeysError) as error:
        file.read()
    assert str(file.path) in str(error.value)
    assert "\n" not in str(error.value)
    assert SECRET not in str(error.value)
    with pytest.raises(SystemExit, match="text2image: keys file"):
        command(file, "create", "bob")
    assert file.path.read_text() == text


def test_no_file_is_told_too(file: KeysFile, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="No such file"):
        command(file, "list")
    monkeypatch.delenv("T2I_KEYS_FILE", raising=False)
    monkeypatch.setattr(sys, "argv", ["keys"])
    keys.get_settings.cache_clear()
    with pytest.raises(SystemExit, match="--file or by T2I_KEYS_FILE"):
        keys.main(["list"])
