"""ControlNets as requests name them: limits, the part of a drawing that they steer, what people type."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.init_images import control_picture
from tests.samples import MODEL
from text2image.core.controls import MAX_CONTROLS, PREPROCESSORS, chosen, parse_control, steers
from text2image.core.errors import InvalidRequest
from text2image.core.messages import Control, ControlInfo, RequestParams
from text2image.core.validation import resolve

MODEL_WITH = replace(
    MODEL,
    controls=(
        ControlInfo("canny", "0123456789"),
        ControlInfo("depth", "aaaaaaaaaa"),
        ControlInfo("xl", "bbbbbbbbbb", fault="is for Stable Diffusion XL"),
    ),
)
SHOWN = control_picture((64, 64))
CANNY = Control("canny", SHOWN)


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_a_window_is_that_of_diffusers(calls: int, start: float, end: float) -> None:
    control = replace(CANNY, start=start, end=end)
    for call in range(calls):
        kept = 1.0 - float(call / calls < start or (call + 1) / calls > end)
        assert steers(control, call, calls) == bool(kept)


@pytest.mark.parametrize(
    ("control", "reason"),
    [
        (Control("sepia", SHOWN), "'sepia', which is not here; embedded has canny, depth"),
        (Control("xl", SHOWN), "'xl', which embedded cannot be steered by: it is for Stable"),
        (Control("canny"), "'canny', whose image is none; add it"),
        (Control("canny", b"a file"), "whose image is a file"),
        (replace(CANNY, scale=2.1), "'canny' the scale 2.1; it must be between 0 and 2"),
        (replace(CANNY, scale=-0.1), "between 0 and 2"),
        (replace(CANNY, scale=float("nan")), "the scale nan"),
        (replace(CANNY, start=0.5, end=0.5), "from 0.5 to 0.5 of the drawing"),
        (replace(CANNY, start=float("nan")), "from nan to 1"),
        (replace(CANNY, start=-0.1), "between 0 and 1"),
        (replace(CANNY, end=1.1), "between 0 and 1"),
        (replace(CANNY, preprocess="pose"), "by 'pose'; it must be one of canny, inpaint"),
        (replace(CANNY, hash="ffffffffff"), "here it is another file, 0123456789"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_there_is(control: Control, reason: str) -> None:
    params = RequestParams(prompt="a cat", steps=-1, controls=(CANNY, control))
    with pytest.raises(InvalidRequest) as caught:
        resolve(params, MODEL_WITH)
    # Beside what else is wrong.
    assert {each.field for each in caught.value.violations} == {"steps", "controls"}
    assert reason in str(caught.value)


def test_a_model_without_any_says_so() -> None:
    with pytest.raises(InvalidRequest, match="embedded has no ControlNets"):
        chosen([CANNY], MODEL)


def test_there_are_not_too_many() -> None:
    assert len(chosen([CANNY] * MAX_CONTROLS, MODEL_WITH)) == MAX_CONTROLS
    with pytest.raises(InvalidRequest, match="are 4; a picture is steered by at most 3"):
        chosen([CANNY] * (MAX_CONTROLS + 1), MODEL_WITH)


def test_controls_keep_their_order_and_those_that_add_nothing_are_none() -> None:
    depth = Control("depth", SHOWN, scale=0.5)
    request = resolve(
        RequestParams(prompt="a cat", controls=(depth, replace(CANNY, scale=0), CANNY)), MODEL_WITH
    )
    assert request.controls == (
        replace(depth, hash="aaaaaaaaaa"),
        replace(CANNY, hash="0123456789"),
    )
    # By their pictures' content, of which a digest is enough.
    other = replace(request.controls[1], image=control_picture((64, 64), seed=1))
    assert replace(request, controls=(request.controls[0], other)) != request


paths = st.text("ab/. -_Ü=", min_size=1, max_size=9)
part = st.floats(0, 9, allow_nan=False).map(lambda number: f"{number:.3f}")


@given(paths, st.none() | part, st.none() | st.tuples(part, part), st.sampled_from(PREPROCESSORS))
def test_what_people_type_is_read(
    path: str, scale: str | None, window: tuple[str, str] | None, preprocess: str
) -> None:
    text = f"canny={path}"
    text += "" if scale is None else f":{scale}"
    text += "" if window is None else f":{window[0]}-{window[1]}"
    start, end = window or ("0", "1")
    expected = Control("canny", None, float(scale or 1), float(start), float(end))
    assert parse_control(text) == (expected, path)
    assert parse_control(f"{text}:{preprocess}") == (replace(expected, preprocess=preprocess), path)


@pytest.mark.parametrize("text", ["canny", "canny=", "=a.png", ""])
def test_what_names_no_net_and_no_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no file"):
        parse_control(text)


def test_files_may_have_colons() -> None:
    assert parse_control("canny=C:\\a.png:0.5")[1] == "C:\\a.png"
    assert parse_control("canny=a:b.png")[1] == "a:b.png"
