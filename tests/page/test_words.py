"""Every error has clear words: what happened, what to do, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from frontend.drawing import Tile, View
from frontend.history import History
from frontend.starts import Start
from frontend.words import (
    Remedy,
    caption_of,
    condition_of,
    in_seconds,
    notice_of,
    parameters_of,
    plain,
    progress_of,
)
from tests.page.harness import picture_of
from tests.page.test_drawing import ORDER
from text2image.core import errors
from text2image.core.errors import FieldViolation, InvalidRequest, Unavailable
from text2image.core.messages import LoraWeight, State, Status


def unavailable(reason: str) -> Unavailable:
    return Unavailable(
        "UNAVAILABLE: connections to all backends failing", reason=reason, retry_after=3
    )


@pytest.mark.parametrize(
    ("error", "remedy", "title"),
    [
        (errors.QuotaExceeded("600 a minute are spent", retry_after=8), Remedy.AGAIN, "limit"),
        (unavailable(Unavailable.FULL), Remedy.AGAIN, "busy"),
        (unavailable(Unavailable.LOADING), Remedy.WAIT, "just now"),
        (unavailable(Unavailable.NO_RUNNER), Remedy.WAIT, "just now"),
        (errors.Unauthenticated("no key"), Remedy.KEY, "asks for an API key"),
        (errors.PermissionDenied("only admin"), Remedy.KEY, "may not do that"),
        (errors.DeadlineExceeded("too slow"), Remedy.AGAIN, "too long"),
        (errors.PayloadTooLarge("too large"), Remedy.AGAIN, "refused"),
        (errors.Internal("abc"), Remedy.AGAIN, "wrong"),
        (errors.Cancelled("gone"), Remedy.AGAIN, "Cancelled"),
    ],
)
def test_an_error_says_what_happened_and_what_to_do(
    error: errors.Text2ImageError, remedy: Remedy, title: str
) -> None:
    notice = notice_of(error)
    assert notice.remedy is remedy
    assert title in notice.title


def test_bad_fields_are_named_as_the_form_names_them() -> None:
    error = InvalidRequest(
        FieldViolation("width", "is 100 pixels"), FieldViolation("negative_prompt", "is [too] long")
    )
    assert notice_of(error).text == (
        "**Width** is 100 pixels.  \n**Not in the picture** is \\[too\\] long."
    )


@pytest.mark.parametrize("error", [errors.QuotaExceeded("x", retry_after=8), unavailable("FULL")])
def test_a_delay_is_passed_on(error: errors.Text2ImageError) -> None:
    assert notice_of(error).retry_after == error.retry_after


def test_a_wrong_key_is_told_from_a_missing_one() -> None:
    error = errors.Unauthenticated("this API key is unknown")
    assert "asks for" in notice_of(error).title
    wrong = notice_of(error, has_key=True)
    assert "not accepted" in wrong.title
    assert wrong.text == "This API key is unknown."


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (None, "127.0.0.1:50051"),
        (Status(state=State.LOADING, detail="runner 0: warming up"), "Runner 0\\: warming up."),
        (Status(state=State.DRAINING), "no more work"),
        (Status(state=State.FAILED, detail="no such model"), "No such model."),
    ],
)
def test_a_server_that_does_not_draw_is_waited_for_and_says_why(
    status: Status | None, told: str
) -> None:
    notice = condition_of(status, "127.0.0.1:50051")
    assert notice.remedy is Remedy.WAIT
    assert told in notice.text


def test_a_picture_tells_its_seed_its_time_and_its_parameters() -> None:
    order = replace(ORDER, negative_prompt="fog")
    (piece,) = History().add(order, [picture_of(7)])
    assert caption_of(piece) == "Seed 7 · 1.0 s"
    assert parameters_of(piece) == "1 × 1 · 2 steps · guidance 5 · euler · without fog"
    (piece,) = History().add(order, [picture_of(7, cached=True)])
    assert caption_of(piece) == "Seed 7 · from the cache"


def test_all_that_changes_a_picture_is_told_with_its_parameters() -> None:
    order = replace(
        ORDER,
        clip_skip=2,
        start=Start(64, 64, b"", b"mask"),
        strength=0.6,
        loras=(LoraWeight("ink_wash", 0.5),),
    )
    (piece,) = History().add(order, [picture_of(7)])
    assert parameters_of(piece).endswith(
        "clip skip 2 · from a picture at strength 0.6 where it is marked · ink\\_wash 0.5"
    )
    (piece,) = History().add(replace(ORDER, hires_scale=1.5), [picture_of(7)])
    assert parameters_of(piece).endswith("enlarged 1.5 ×, changed by 0.5")


def test_progress_is_told_from_the_question_to_the_last_step() -> None:
    view = View((Tile(0, 20),) * 2, None, 0.0, "", None)
    assert progress_of(view) == "Asking the server"
    assert progress_of(replace(view, predicted_seconds=12.0, seconds=2.0)) == (
        "Waiting for its turn, about 10 s"
    )
    begun = replace(view, predicted_seconds=12.0, tiles=(Tile(7, 20), Tile(6, 20)))
    assert progress_of(begun) == "Step 13 of 40"


@pytest.mark.parametrize(("seconds", "told"), [(0.61, "0.6 s"), (41.7, "42 s"), (125, "2 min 5 s")])
def test_durations_are_short(seconds: float, told: str) -> None:
    assert in_seconds(seconds) == told


def test_what_looks_like_markdown_is_shown_as_it_is() -> None:
    assert plain("a *red* $fox$ [x](y)") == "a \\*red\\* \\$fox\\$ \\[x\\]\\(y\\)"
