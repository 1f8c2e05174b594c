"""The command: what is typed becomes a request or one clear line, and its end tells how it went."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given

from tests.samples import params_of, requests
from text2image.cli import drawing
from text2image.cli import main as command
from text2image.cli.arguments import BAD_USAGE, Options, parse
from text2image.cli.drawing import CannotDraw, Tell
from text2image.cli.main import FAILED, INTERRUPTED, main
from text2image.cli.screen import Screen
from text2image.core.errors import (
    DeadlineExceeded,
    FieldViolation,
    InvalidRequest,
    Text2ImageError,
    Unauthenticated,
    Unavailable,
)
from text2image.core.messages import (
    Completed,
    Control,
    Picture,
    Progress,
    Queued,
    Request,
    RequestParams,
    Timings,
)
from text2image.core.settings import Settings, get_settings

Draw = Callable[[Options, Settings, Screen, Tell], None]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    get_settings.cache_clear()
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def drawn_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Draw], None]:
    """Has somebody else draw what the command was asked for."""
    return lambda draw: monkeypatch.setattr(command, "draw", draw)


def picture(index: int = 0) -> Picture:
    return Picture(
        index=index,
        seed=7 + index,
        width=8,
        height=8,
        png=f"picture {index}".encode(),
        path="",
        timings=Timings(queued=0.0, denoising=1.0, decoding=0.25),
    )


def artist(n: int = 1) -> Draw:
    def draw(options: Options, settings: Settings, screen: Screen, tell: Tell) -> None:
        tell(Queued(1.0))
        tell(Progress(0, 1, 2))
        for index in range(n):
            tell(picture(index))
        tell(Completed(""))

    return draw


def failing(error: BaseException) -> Draw:
    def draw(*_: object) -> None:
        raise error

    return draw


# What is typed


def test_every_field_of_a_request_can_be_typed() -> None:
    typed = (
        "a red fox --context night --negative-prompt blurry --width 96 --height 64 --steps 4 "
        "--guidance-scale 3.5 --seed 9 -n 2 --sampler euler --model anime"
    )
    options = parse(typed.split())
    assert options.params == RequestParams(
        prompt="a red fox, night",
        negative_prompt="blurry",
        width=96,
        height=64,
        steps=4,
        guidance_scale=3.5,
        seed=9,
        n=2,
        sampler="euler",
        model="anime",
    )
    assert options.title == "night a red fox"


def test_what_is_not_typed_is_left_to_the_server() -> None:
    assert parse(["a red fox"]).params == RequestParams(prompt="a red fox")


def test_a_size_is_both_sides() -> None:
    params = parse(["fox", "--size", "96x64"]).params
    assert (params.width, params.height) == (96, 64)


@given(requests.filter(lambda request: bool(request.prompt.strip())))
def test_what_a_model_can_draw_can_be_typed(request: Request) -> None:
    typed = {
        "--negative-prompt": request.negative_prompt,
        "--width": request.width,
        "--height": request.height,
        "--steps": request.steps,
        "--guidance-scale": request.guidance_scale,
        "--seed": request.seed,
        "--sampler": request.sampler.value,
        "-n": request.n,
        **({"--schedule": request.schedule.value} if request.schedule else {}),
        "--quality": request.quality.value,
        "--model": request.model,
        "--clip-skip": request.clip_skip,
    }
    options = [f"{name}{'' if name == '-n' else '='}{value}" for name, value in typed.items()]
    options += [f"--lora={lora.name}:{lora.weight!r}" for lora in request.loras]
    params = parse([*options, "--", request.prompt]).params
    named = tuple(replace(lora, hash="") for lora in request.loras)
    assert params == params_of(replace(request, loras=named))


def test_what_steers_a_picture_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "a:b.png").write_bytes(b"edges")
    words = ["--control", "canny=a:b.png", "--control=depth=a:b.png:0.5:0-0.6:canny"]
    assert parse(["fox", *words]).params.controls == (
        Control("canny", b"edges"),
        Control("depth", b"edges", 0.5, 0.0, 0.6, "canny"),
    )


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "prompt: is empty; say what to draw"),
        ("fox --steps 500", "--steps: is 500; it must be between 1 and 150"),
        ("fox --seed -1", "--seed: is -1; it must be between 0 and 9223372036854775807"),
        ("fox --seed 9223372036854775808", "--seed: is 9223372036854775808; it must be"),
        ("fox -n 11", "-n: is 11; it must be between 1 and 10"),
        ("fox --width 99999999999", "--width: is 99999999999 pixels; a model draws between"),
        ("fox --size 65x64", "--width: is 65 pixels; it must be a multiple of 8"),
        ("fox --guidance-scale nan", "--guidance-scale: is nan; it must be between 0 and 30"),
        ("fox --sampler magic", "--sampler: is 'magic'; it must be one of dpm++ 2m, dpm++ 2m sde"),
        (
            "fox --sampler ddim --schedule karras",
            "--schedule: asks for the schedule 'karras'; with ddim it must be left out",
        ),
        ("fox --quality best", "--quality: is 'best'; it must be one of exact, fast"),
        ("fox --size big", "--size: is 'big'; write width and height as in 512x512"),
        ("fox --size 64x64 --width 64", "--size: says the same as --width and --height"),
        ("fox --timeout 0", "--timeout: is 0.0; it must be a number of seconds above 0"),
        ("fox --output fox.jpg", "--output: is 'fox.jpg', and pictures are PNG"),
        ("fox --steps many", "--steps: 'many' is no whole number"),
        ("fox --guidance-scale some", "--guidance-scale: 'some' is no number"),
        ("fox --stepz 4", "unrecognized arguments: --stepz"),
        ("fox --steps", "--steps: expected one argument"),
        ("fox --control canny", "--control: 'canny' must be a name and a file, as in canny=edges"),
        ("fox --control canny=gone.png", "--control: gone.png: No such file or directory"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_and_nothing_is_loaded_or_asked(
    typed: str,
    said: str,
    drawn_by: Callable[[Draw], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn_by(failing(AssertionError("somebody was asked to draw")))
    assert status_of(typed.split()) == BAD_USAGE
    out, told = capsys.readouterr()
    assert not out
    assert told.startswith(f"text2image: {said}")
    assert told.count("\n") == 1


def status_of(arguments: Sequence[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


# How it ends


def test_paths_alone_go_to_standard_output(
    drawn_by: Callable[[Draw], None], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn_by(artist(2))
    assert main(["a red fox", "-n", "2"]) == 0
    out, told = capsys.readouterr()
    paths = [Path(line) for line in out.splitlines()]
    assert [path.read_bytes() for path in paths] == [b"picture 0", b"picture 1"]
    assert all(path.name.startswith("red_fox_") for path in paths)
    assert told == "seed 7, 1.2 s\nseed 8, 1.2 s\n"


def test_quiet_says_nothing_but_the_paths(
    drawn_by: Callable[[Draw], None], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn_by(artist())
    assert main(["a red fox", "--quiet"]) == 0
    out, told = capsys.readouterr()
    assert Path(out.strip()).is_file()
    assert not told


def test_a_folder_keeps_what_is_in_it(drawn_by: Callable[[Draw], None], tmp_path: Path) -> None:
    drawn_by(artist())
    for _ in range(3):
        assert main(["a red fox", "--output", "new/folder/"]) == 0
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 3


def test_a_file_is_replaced_and_several_are_numbered(
    drawn_by: Callable[[Draw], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fox.png").write_bytes(b"old")
    drawn_by(artist())
    assert main(["a red fox", "--output", "fox.png"]) == 0
    assert (tmp_path / "fox.png").read_bytes() == b"picture 0"
    drawn_by(artist(2))
    assert main(["a red fox", "--output", "fox.png", "-n", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == ["fox.png", "fox_1.png", "fox_2.png"]
    assert (tmp_path / "fox_2.png").read_bytes() == b"picture 1"


@pytest.mark.parametrize("output", ["file/pictures/", "file/pictures/fox.png"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_drawn(
    output: str,
    drawn_by: Callable[[Draw], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn_by(failing(AssertionError("somebody was asked to draw")))
    (tmp_path / "file").write_text("")
    assert main(["a red fox", "--output", output]) == FAILED
    told = capsys.readouterr().err
    assert told.startswith("text2image: file/pictures: Not a directory")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InvalidRequest(FieldViolation("steps", "is odd")), BAD_USAGE, "--steps: is odd"),
        (
            Unavailable("the server is full", reason=Unavailable.FULL, retry_after=12.3),
            FAILED,
            "the server is full; try again in 12 s",
        ),
        (DeadlineExceeded("too late"), FAILED, "too late"),
        (
            Unauthenticated("show a key"),
            FAILED,
            "show a key; this command takes it from T2I_API_KEY",
        ),
        (CannotDraw("nobody\nis there"), FAILED, "nobody is there"),
        (PermissionError(13, "Permission denied", "fox.png"), FAILED, "fox.png: Permission denied"),
        (ValueError("an API key is printable"), FAILED, "an API key is printable"),
        (KeyboardInterrupt(), INTERRUPTED, "cancelled"),
    ],
)
def test_a_failure_is_one_line_and_a_status(
    error: Text2ImageError,
    status: int,
    said: str,
    drawn_by: Callable[[Draw], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn_by(failing(error))
    assert main(["a red fox"]) == status
    assert capsys.readouterr() == ("", f"text2image: {said}\n")


def test_a_bad_setting_is_bad_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("T2I_DTYPE", "int8")
    assert main(["a red fox"]) == BAD_USAGE
    told = capsys.readouterr().err
    assert told.startswith("text2image: T2I_DTYPE=int8: ")
    assert told.count("\n") == 1


def test_what_the_encoder_left_out_is_told(
    drawn_by: Callable[[Draw], None], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn_by(lambda *arguments: arguments[-1](Completed("and a zebra", "and a hen")))
    assert main(["a red fox"]) == 0
    told = capsys.readouterr().err
    assert "the prompt was too long, left out: and a zebra" in told
    assert "the negative prompt was too long, left out: and a hen" in told


# Who draws


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was chosen to draw: the server's address, or "here"."""
    asked: list[str] = []

    async def here(*_: object) -> None:
        asked.append("here")

    monkeypatch.setattr(drawing, "_draw_here", here)
    monkeypatch.setattr(drawing, "_draw_on_server", lambda address, *_: asked.append(address))
    return asked


def ask(settings: Settings, *arguments: str) -> None:
    drawing.draw(parse(["fox", *arguments]), settings, Screen(io.StringIO()), lambda event: None)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_server_that_listens_is_used_unless_it_is_not_wanted(
    chosen: list[str], host: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        settings = Settings(HOST=host, GRPC_PORT=port)
        ask(settings)
        ask(settings, "--local")
        ask(Settings(), "--server", f"127.0.0.1:{port}")
    address = f"{'localhost' if host == 'localhost' else '127.0.0.1'}:{port}"
    assert chosen == [address, "here", f"127.0.0.1:{port}"]


def test_without_a_server_this_process_draws_unless_one_was_named(chosen: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    ask(Settings(HOST="127.0.0.1", GRPC_PORT=port))
    with pytest.raises(CannotDraw, match=f"no server listens at 127.0.0.1:{port} "):
        ask(Settings(), "--server", f"127.0.0.1:{port}")
    ask(Settings(server=f"127.0.0.1:{port}"), "--local")
    assert chosen == ["here", "here"]


# What is seen


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar_that_gives_way_to_words() -> None:
    terminal = Terminal()
    screen = Screen(terminal)
    screen.bar(1, 2, "step 1 of 2")
    bar = terminal.getvalue()
    assert "━" in bar
    assert bar.endswith("step 1 of 2")
    screen.say("done")
    words = terminal.getvalue().removeprefix(bar)
    assert words.endswith("\x1b[2Kdone\n")


def test_where_there_is_no_terminal_there_is_no_bar() -> None:
    log = io.StringIO()
    screen = Screen(log)
    screen.bar(1, 2, "step 1 of 2")
    screen.note("loading")
    screen.clear()
    assert log.getvalue() == "loading\n"
