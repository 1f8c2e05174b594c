"""The page's script with a server whose answers are written here: what it shows, asks for, and remembers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from streamlit.testing.v1 import AppTest

from frontend.form import MAX_TYPED_SEED
from tests.e2e.harness import eventually
from tests.page.harness import (
    ScriptedClient,
    draw,
    drawn,
    picture_of,
    press,
    settle,
    visitor_of,
    words,
)
from tests.samples import MODEL
from text2image.core.errors import Cancelled, FieldViolation, InvalidRequest, Unavailable
from text2image.core.messages import ClientEvent, Sampler, State, Status
from text2image.core.validation import MAX_GUIDANCE, MAX_IMAGES, MAX_STEPS

LOADING = Unavailable("the model is loading", reason=Unavailable.LOADING, retry_after=5)


@pytest.fixture
def page(open_page: Callable[..., AppTest]) -> AppTest:
    return open_page()


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"HOST": "::1", "GRPC_PORT": "50123"}, "[::1]:50123"),
        ({"HOST": "0.0.0.0", "GRPC_PORT": "50123"}, "127.0.0.1:50123"),
        ({"HOST": "0.0.0.0", "T2I_SERVER": "gateway:50051"}, "gateway:50051"),
    ],
)
def test_the_server_is_found_by_the_settings(
    open_page: Callable[..., AppTest],
    client: ScriptedClient,
    variables: dict[str, str],
    address: str,
) -> None:
    assert not open_page(**variables).exception
    assert set(client.connections) == {(address, None)}


def test_limits_and_defaults_are_those_of_the_model(
    client: ScriptedClient, open_page: Callable[..., AppTest]
) -> None:
    client.served = replace(
        MODEL, width=96, height=72, min_side=64, max_side=104, steps=7, sampler=Sampler.UNIPC
    )
    page = open_page()
    width = page.number_input(key="width")
    assert (width.value, width.min, width.max) == (96, 64, 104)
    assert page.number_input(key="height").value == 72
    assert (page.slider(key="steps").value, page.slider(key="steps").max) == (7, MAX_STEPS)
    assert page.slider(key="guidance_scale").max == MAX_GUIDANCE
    assert page.number_input(key="n").max == MAX_IMAGES
    assert page.selectbox(key="sampler").value == "unipc"


def test_another_model_brings_its_own_limits(client: ScriptedClient, page: AppTest) -> None:
    page.number_input(key="width").set_value(256)
    draw(page)
    client.served = replace(MODEL, width=64, max_side=128)
    page.run()
    assert not page.exception
    assert page.number_input(key="width").value == 64


def test_with_several_models_one_is_chosen_and_brings_its_limits(
    client: ScriptedClient, page: AppTest
) -> None:
    assert "model" not in [box.key for box in page.selectbox]
    client.others = [replace(MODEL, id="large", width=256, steps=9)]
    page.run()
    assert page.selectbox(key="model").options == [MODEL.id, "large"]
    page.selectbox(key="model").set_value("large").run()
    assert page.number_input(key="width").value == 256
    draw(page)
    assert client.asked[-1][1]["model"] == "large"
    client.others = []
    page.run()
    assert not page.exception
    draw(page)
    assert "model" not in client.asked[-1][1]


def test_every_field_of_the_form_is_asked_for(
    client: ScriptedClient, open_page: Callable[..., AppTest]
) -> None:
    client.served = replace(MODEL, max_clip_skip=12)
    page = open_page()
    page.text_input(key="context").input("watercolour")
    page.text_input(key="negative_prompt").input("fog")
    page.number_input(key="width").set_value(64)
    page.number_input(key="height").set_value(72)
    page.slider(key="steps").set_value(3)
    page.slider(key="guidance_scale").set_value(7.5)
    page.selectbox(key="sampler").set_value("euler")
    page.number_input(key="n").set_value(2)
    page.number_input(key="seed").set_value(5)
    page.number_input(key="clip_skip").set_value(1)
    client.answer = lambda *_, **__: iter(drawn(steps=3, n=2))
    draw(page, "a fox")
    assert client.asked == [
        (
            "a fox, watercolour",
            {
                "negative_prompt": "fog",
                "width": 64,
                "height": 72,
                "steps": 3,
                "guidance_scale": 7.5,
                "sampler": "euler",
                "seed": 5,
                "n": 2,
                "clip_skip": 1,
            },
        )
    ]
    assert len(visitor_of(page).history) == 2


def test_a_seed_that_nobody_named_is_the_servers_to_pick(
    client: ScriptedClient, page: AppTest
) -> None:
    draw(page)
    assert "seed" not in client.asked[0][1]


def test_the_dice_throws_a_seed_and_draws_nothing(client: ScriptedClient, page: AppTest) -> None:
    page.button(key="dice").click().run()
    first = page.number_input(key="seed").value
    page.button(key="dice").click().run()
    assert page.number_input(key="seed").value != first
    assert 0 <= first <= MAX_TYPED_SEED
    assert client.asked == []


def test_reuse_takes_the_newest_pictures_seed(page: AppTest) -> None:
    assert page.button(key="reuse").disabled
    draw(page)
    page.button(key="reuse").click().run()
    assert page.number_input(key="seed").value == visitor_of(page).history.newest.picture.seed


def test_a_picture_is_shown_with_its_seed_time_and_parameters(page: AppTest) -> None:
    draw(page, "a *fox*")
    assert "Seed 1 · 1.0 s" in words(page)
    assert "1 × 1 · 20 steps · guidance 5 · dpm\\+\\+ 2m" in words(page)
    assert "a \\*fox\\*" in words(page)


@pytest.mark.parametrize(("truncated", "told"), [("", False), ("zebra", True)])
def test_words_that_were_left_out_are_told(
    client: ScriptedClient, page: AppTest, truncated: str, told: bool
) -> None:
    client.answer = lambda *_, **__: iter(drawn(truncated=truncated))
    draw(page)
    assert ("Left out: zebra" in words(page)) is told


def test_a_picture_of_the_gallery_is_drawn_again_or_varied(
    client: ScriptedClient, page: AppTest
) -> None:
    page.slider(key="steps").set_value(9)
    draw(page, "a fox")
    page.slider(key="steps").set_value(4)
    draw(page, "a hen")
    foxes = [piece for piece in visitor_of(page).history if piece.order.text == "a fox"]
    page.button(key=f"Draw again small {foxes[0].id}").click().run()
    settle(page)
    page.button(key=f"Vary small {foxes[0].id}").click().run()
    settle(page)
    again, varied = client.asked[2:]
    assert again == ("a fox", {**client.asked[0][1], "seed": 1})
    assert varied[1] == {**again[1], "seed": varied[1]["seed"]}
    assert varied[1]["seed"] != 1
    assert page.text_input(key="text").value == "a fox"
    assert page.slider(key="steps").value == 9


def test_a_picture_of_the_gallery_is_looked_at_and_the_gallery_cleared(page: AppTest) -> None:
    draw(page, "a fox")
    draw(page, "a hen")
    visitor = visitor_of(page)
    assert [piece.order.text for piece in visitor.shown] == ["a hen"]
    fox = list(visitor.history)[-1]
    page.button(key=f"Look at it small {fox.id}").click().run()
    assert "a fox" in words(page)
    assert "a hen" not in words(page)
    page.button(key="clear").click().run()
    assert len(visitor.history) == 0
    assert "Say what to draw" in words(page)


def test_a_new_request_takes_the_place_of_the_one_under_way(
    client: ScriptedClient, page: AppTest
) -> None:
    stuck = threading.Event()

    def one_and_no_more(*_: object, **__: object) -> Iterator[ClientEvent]:
        yield picture_of(seed=7)
        stuck.wait(60)
        raise Cancelled("closed")

    client.answer = one_and_no_more
    page.text_input(key="text").input("a fox")
    page.button(key="draw").click().run()
    visitor = visitor_of(page)
    first = visitor.drawing
    eventually(lambda: first.view.pictures, "the first picture is there")
    client.answer = lambda *_, **__: iter(drawn())
    draw(page, "a hen")
    stuck.set()
    assert first.join(60)
    assert isinstance(first.view.error, Cancelled)
    assert [piece.order.text for piece in visitor.history] == ["a hen", "a fox"]
    assert visitor.told is None


def test_an_idea_is_drawn_at_once(client: ScriptedClient, page: AppTest) -> None:
    page.button(key="idea_1").click().run()
    settle(page)
    assert client.asked[0][0] == page.text_input(key="text").value != ""


def fails(error: Exception) -> Callable[..., Iterator[ClientEvent]]:
    def answer(*_: object, **__: object) -> Iterator[ClientEvent]:
        raise error

    return answer


def test_bad_input_names_the_field(client: ScriptedClient, page: AppTest) -> None:
    client.answer = fails(InvalidRequest(FieldViolation("prompt", "is empty; say what to draw")))
    draw(page, "")
    assert "**Prompt** is empty; say what to draw." in words(page)


def test_a_busy_server_is_asked_again_after_its_delay(
    client: ScriptedClient, page: AppTest
) -> None:
    full = Unavailable("the server is full", reason=Unavailable.FULL, retry_after=600)
    client.answer = fails(full)
    draw(page)
    wait = page.button(key="wait")
    assert wait.disabled
    assert wait.label == "Try again in 600 s"
    visitor = visitor_of(page)
    visitor.told = replace(visitor.told, retry_at=0.0)
    page.run()
    client.answer = lambda *_, **__: iter(drawn())
    press(page, "Try again")
    assert len(visitor.history) == 1
    assert client.asked[0] == client.asked[1]


def test_a_loading_server_says_what_it_loads_and_opens_by_itself(
    client: ScriptedClient, open_page: Callable[..., AppTest]
) -> None:
    client.refusal = LOADING
    client.state = Status(state=State.LOADING, detail="runner 0: reading the weights")
    page = open_page()
    assert "reading the weights" in words(page)
    client.refusal = None
    client.state = Status(state=State.READY)
    page.run()
    assert page.button(key="draw")
    assert "just now" not in words(page)


def test_a_server_that_is_down_keeps_the_form_and_the_pictures(
    client: ScriptedClient, page: AppTest
) -> None:
    draw(page, "a fox")
    client.refusal = Unavailable("refused", reason=Unavailable.NO_RUNNER, retry_after=2)
    page.run()
    assert "does not answer" in words(page)
    assert page.text_input(key="text").value == "a fox"
    assert len(visitor_of(page).history) == 1


def test_a_server_that_is_back_is_asked_again(client: ScriptedClient, page: AppTest) -> None:
    client.answer = fails(LOADING)
    client.state = Status(state=State.READY)
    draw(page)
    assert "The server is ready" in words(page)
    client.answer = lambda *_, **__: iter(drawn())
    press(page, "Try again")
    assert len(visitor_of(page).history) == 1


def show_key(page: AppTest, key: str) -> AppTest:
    page.text_input(key="api_key").input(key)
    page.button(key="use_key").click().run()
    return settle(page)


def test_a_key_is_asked_for_when_the_server_wants_one(
    client: ScriptedClient, open_page: Callable[..., AppTest]
) -> None:
    client.key = "right"
    page = open_page()
    assert "asks for an API key" in words(page)
    assert "not accepted" in words(show_key(page, "wrong"))
    assert "no API key" in words(show_key(page, "not even a key"))
    draw(show_key(page, " right "))
    assert len(visitor_of(page).history) == 1


def test_what_was_refused_for_want_of_a_key_is_drawn_with_it(
    client: ScriptedClient, page: AppTest
) -> None:
    page.text_input(key="text").input("a fox")
    client.key = "right"
    page.button(key="draw").click().run()
    settle(page)
    assert client.asked == []
    show_key(page, "right")
    assert [prompt for prompt, _ in client.asked] == ["a fox"]
    assert len(visitor_of(page).history) == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [("T2I_TLS_CA", "/nowhere/ca.pem"), ("GRPC_PORT", "many"), ("T2I_API_KEY", "not even a key")],
)
def test_a_setting_that_is_wrong_is_told(
    open_page: Callable[..., AppTest], variable: str, value: str
) -> None:
    page = open_page(**{variable: value})
    assert not page.exception
    assert "cannot be shown" in page.error[0].value


def test_a_fault_of_the_page_itself_shows_no_traceback(
    client: ScriptedClient, open_page: Callable[..., AppTest]
) -> None:
    client.served = None  # type: ignore[assignment]
    client.models = fails(RuntimeError("secret"))  # type: ignore[method-assign,assignment]
    page = open_page()
    assert not page.exception
    assert "quote id" in page.error[0].value
    assert "secret" not in page.error[0].value


def test_no_connection_is_left_open(client: ScriptedClient, page: AppTest) -> None:
    for _ in range(3):
        draw(page)
    assert client.closed >= len(client.connections)
