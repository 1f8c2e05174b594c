"""What T2I_MODELS may name, and what is said where it cannot be understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from text2image.core.catalogue import all_entries, default_entry, find_entries
from text2image.core.limits import parse_bytes
from text2image.core.messages import Sampler
from text2image.core.settings import Settings, get_settings


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    return folder


def test_nothing_names_no_models() -> None:
    assert find_entries(None) == {}


def test_a_folders_sub_folders_are_models_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        model(tmp_path / name)
    (tmp_path / "no model").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "single.safetensors").write_bytes(b"")
    entries = find_entries(str(tmp_path))
    assert {name: entry.source for name, entry in entries.items()} == {
        "a": str(tmp_path / "a"),
        "b": str(tmp_path / "b"),
        "single": str(tmp_path / "single.safetensors"),
    }


def test_a_list_names_folders_by_their_names_or_by_given_ones_and_hub_ids(tmp_path: Path) -> None:
    folder = model(tmp_path / "sd15")
    entries = find_entries(f"{folder}, anime={folder},stabilityai/sd-turbo")
    assert {name: entry.source for name, entry in entries.items()} == {
        "sd15": str(folder),
        "anime": str(folder),
        "stabilityai/sd-turbo": "stabilityai/sd-turbo",
    }
    assert list(find_entries(str(folder))) == ["sd15"]


def test_a_file_says_more_of_each(tmp_path: Path) -> None:
    model(tmp_path / "v3")
    file = tmp_path / "models.toml"
    file.write_text(
        '[models.anime]\npath = "v3"\naliases = ["manga"]\nsteps = 30\nsampler = "Euler a"\n'
        'precision = "float16"\nprice = 2\nclip_skip = 2\nembeddings = "words"\n'
        'quantize = "int8"\noffload = "model"\ntile_above = 0\n'
        '[models.hub]\npath = "owner/name"\nrevision = "v1"\n'
    )
    entries = find_entries(str(file))
    settings = Settings(default_steps=5, dtype="float32")
    anime = entries["anime"].applied_to(settings)
    assert anime.model == str(tmp_path / "v3")
    assert (anime.default_steps, anime.dtype) == (30, "float16")
    assert anime.default_sampler is Sampler.EULER_ANCESTRAL
    assert (anime.quantize, anime.offload, anime.tile_above) == ("int8", "model", 0)
    assert (anime.default_clip_skip, anime.embeddings) == (2, tmp_path / "words")
    assert (entries["anime"].aliases, entries["anime"].price) == (("manga",), 2)
    hub = entries["hub"].applied_to(settings)
    assert (hub.model, hub.model_revision, hub.default_steps) == ("owner/name", "v1", 5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("= 3", "no TOML"),
        ('[model.a]\npath = "b"', r"a table \[models\.NAME\]"),
        ("[models.a]\nsteps = 3", r"\[models\.a\] path: Field required"),
        ('[models.a]\npath = "b"\nstep = 3', r"\[models\.a\] step: Extra"),
        ('[models.a]\npath = "b"\nsteps = 0', r"\[models\.a\] steps"),
        ('[models.a]\npath = "b"\nquantize = "int4"', r"\[models\.a\] quantize: .*'int8'"),
        ('[models.a]\npath = "b"\naliases = ["c"]\n[models.c]\npath = "d"', "'c' names two models"),
    ],
)
def test_what_a_file_gets_wrong_is_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=told):
        find_entries(str(file))


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        find_entries(str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match=r"models\.toml"):
        find_entries(str(tmp_path / "models.toml"))


def test_an_entry_changes_with_the_files_of_its_folder(tmp_path: Path) -> None:
    folder = model(tmp_path / "a")
    before = find_entries(str(tmp_path))
    assert find_entries(str(tmp_path)) == before
    (folder / "weights.safetensors").write_bytes(b"abc")
    assert find_entries(str(tmp_path)) != before


def test_the_default_model_may_be_one_of_them(tmp_path: Path) -> None:
    folder = model(tmp_path / "a")
    assert default_entry(Settings(models=str(tmp_path), model="a")).source == str(folder)
    assert default_entry(Settings(models=str(tmp_path))).name == "embedded"
    alone = default_entry(Settings(model=str(folder), model_revision=None))
    assert (alone.name, alone.source) == ("a", str(folder))


def test_models_have_the_names_that_the_settings_give_them_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        model(tmp_path / name)
    told = "dall-e-3=a, gpt-image-1=b,gpt-image-1-mini=a,dall-e-2=embedded,lost=nowhere"
    settings = Settings(models=str(tmp_path), model_aliases=told)
    assert {name: entry.aliases for name, entry in all_entries(settings).items()} == {
        "embedded": ("dall-e-2",),
        "a": ("dall-e-3", "gpt-image-1-mini"),
        "b": ("gpt-image-1",),
    }
    assert default_entry(settings).aliases == ("dall-e-2",)


@pytest.mark.parametrize("told", ["dall-e-3", "=a", "a=", "a=b,a=c"])
def test_what_is_no_alias_is_told(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("T2I_MODEL_ALIASES", told)
    get_settings.cache_clear()
    with pytest.raises(SystemExit, match=r"^text2image: T2I_MODEL_ALIASES="):
        get_settings()


@pytest.mark.parametrize(
    ("text", "size"),
    [("6GiB", 6 << 30), ("1.5 GiB", 3 << 29), ("500MB", 500_000_000), ("123", 123), ("2kb", 2000)],
)
def test_bytes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "-1GiB", "6 GB of memory", ""])
def test_what_is_no_number_of_bytes_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="6GiB"):
        parse_bytes(text)
