"""The artwork: fetched from npm, checked, and joined with the names that people use.

Sources, all MIT: Microsoft's Fluent emoji (`@lobehub/fluent-emoji-3d`), names (`unicode-emoji-json`) and
keywords (`emojilib`). `objects.txt` picks the objects.
"""

import json
import re
import subprocess
import tarfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from training.paths import TRAINING, state_dir
from training.vocabulary import BACKGROUNDS, COLOURS

PACKAGES = {
    "artwork": "@lobehub/fluent-emoji-3d@1.1.0",
    "names": "unicode-emoji-json@0.9.0",
    "keywords": "emojilib@4.0.3",
}
COLOUR_WORDS = {*BACKGROUNDS, *COLOURS, "grey", "teal", "violet"}


@dataclass(frozen=True)
class Thing:
    """One object that the model can draw."""

    names: tuple[str, ...]
    keywords: tuple[str, ...]
    file: str
    popular: bool


def fetch(part: str) -> Path:
    """Download one package with `npm pack` and unpack it; returns its folder."""
    folder = state_dir() / "npm" / part
    if (folder / "package" / "package.json").exists():
        return folder / "package"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["npm", "pack", "--silent", "--pack-destination", str(folder), PACKAGES[part]],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (tarball,) = folder.glob("*.tgz")
    with tarfile.open(tarball) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def _picture(assets: Path, character: str) -> Path | None:
    """The picture of an emoji; files are named by code points, with or without the variation selector."""
    points = [f"{ord(c):x}" for c in character]
    for name in (points, [p for p in points if p != "fe0f"], [*points, "fe0f"]):
        path = assets / ("-".join(name) + ".webp")
        if path.exists():
            return path
    return None


def selection() -> list[tuple[str, tuple[str, ...], bool]]:
    """The lines of objects.txt as (Unicode name, names, popular)."""
    lines = []
    for line in (TRAINING / "objects.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        names, unicode_name = line.removeprefix("* ").split(" = ")
        lines.append(
            (
                unicode_name.strip(),
                tuple(n.strip() for n in names.split(",")),
                line.startswith("* "),
            )
        )
    return lines


def _unique_keywords(characters: list[str], taken: set[str]) -> dict[str, tuple[str, ...]]:
    """Keywords that point at one chosen object only, so that a caption is never ambiguous."""
    listed = json.loads((fetch("keywords") / "dist" / "emoji-en-US.json").read_text())
    words = {}
    for character in characters:
        plain = {w.replace("_", " ").lower() for w in listed.get(character, [])}
        words[character] = {w for w in plain if re.fullmatch(r"[a-z][a-z \-]{2,20}", w)}
    count = Counter(w for found in words.values() for w in found)
    return {
        character: tuple(
            sorted(
                w
                for w in found
                if count[w] == 1 and w not in taken and not COLOUR_WORDS & set(w.split())
            )
        )
        for character, found in words.items()
    }


def build_catalogue() -> list[Thing]:
    """Join the selection with pictures and keywords; fails loudly on a name that is not there."""
    assets = fetch("artwork") / "assets"
    by_emoji = json.loads((fetch("names") / "data-by-emoji.json").read_text())
    character_of = {entry["name"]: character for character, entry in by_emoji.items()}
    chosen = selection()
    taken: set[str] = set()
    for unicode_name, names, _ in chosen:
        if unicode_name not in character_of:
            raise ValueError(f"objects.txt: no emoji is called {unicode_name!r}")
        if taken & set(names):
            raise ValueError(f"objects.txt: {taken & set(names)} given twice")
        taken |= set(names)
    keywords = _unique_keywords([character_of[name] for name, _, _ in chosen], taken)
    things = []
    for unicode_name, names, popular in chosen:
        character = character_of[unicode_name]
        path = _picture(assets, character)
        if path is None:
            raise ValueError(f"objects.txt: no picture of {unicode_name!r}")
        things.append(Thing(names, keywords[character], str(path), popular))
    return things


def catalogue() -> list[Thing]:
    """The objects, from the state folder when they were joined before."""
    path = state_dir() / "catalogue.json"
    if path.exists() and path.stat().st_mtime > (TRAINING / "objects.txt").stat().st_mtime:
        return [
            Thing(tuple(t["names"]), tuple(t["keywords"]), t["file"], t["popular"])
            for t in json.loads(path.read_text())
        ]
    things = build_catalogue()
    path.write_text(json.dumps([asdict(t) for t in things], ensure_ascii=False, indent=1))
    return things


if __name__ == "__main__":
    print(len(catalogue()), "objects in", state_dir())
