"""What is drawn with and begun from: pictures, masks, adapters and second passes, where the model takes them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from frontend.orders import Order
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
from text2image.core.messages import (
    Completed,
    Control,
    ControlInfo,
    Input,
    LoraInfo,
    LoraWeight,
    Picture,
    Pixels,
    UpscalerInfo,
)
from text2image.gateway import metadata

INK = LoraInfo("ink", "0123456789", trigger_words=("ink drawing", "sumi_e"))
GOLD = LoraInfo("gold", "9876543210")
WRONG = LoraInfo("wrong", "5555555555", fault="was made for SDXL")
CANNY = ControlInfo("canny", "aaaaaaaaaa")
CAPABLE = replace(
    MODEL,
    inputs=(Input.TEXT, Input.IMAGE, Input.MASK),
    loras=(INK, GOLD, WRONG),
    controls=(CANNY, ControlInfo("xl", "bbbbbbbbbb", fault="is for SDXL")),
    max_clip_skip=12,
    upscalers=(UpscalerInfo("Sharp", "cccccccccc", 4, 96),),
)


@pytest.fixture
def page(client: ScriptedClient, open_page: Callable[..., AppTest]) -> AppTest:
    client.served = CAPABLE
    return open_page()


def file_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def photo(width: int = 96, height: int = 64) -> bytes:
    return file_of(Image.linear_gradient("L").resize((width, height)).convert("RGB"))


def mask(width: int = 96, height: int = 64) -> Image.Image:
    """White in its left half."""
    image = Image.new("L", (width, height))
    image.paste(255, (0, 0, width // 2, height))
    return image


def bring(page: AppTest, file: bytes, name: str = "image") -> AppTest:
    page.file_uploader(key=f"upload_{name}").set_value((f"{name}.png", file, "image/png")).run()
    assert not page.exception
    return page


def last_asked(client: ScriptedClient) -> dict[str, object]:
    return client.asked[-1][1]


def order_of(page: AppTest) -> Order:
    """That of the newest picture."""
    newest = visitor_of(page).history.newest
    assert newest
    return newest.order


def keys_of(page: AppTest) -> set[str]:
    widgets = (*page.slider, *page.multiselect, *page.file_uploader, *page.number_input)
    return {widget.key for widget in (*widgets, *page.button)}


def test_nothing_is_offered_that_the_model_cannot_do(client: ScriptedClient, page: AppTest) -> None:
    draw(page)
    (piece,) = visitor_of(page).history
    offered = {
        "loras",
        "controls",
        "upload_image",
        "hires_scale",
        "clip_skip",
        f"Use as input {piece.id}",
    }
    assert offered <= keys_of(page)
    client.served = replace(
        CAPABLE, loras=(WRONG,), controls=(), inputs=(Input.TEXT,), max_clip_skip=0
    )
    page.run()
    assert not offered & keys_of(page)
    draw(page)
    assert last_asked(client)["clip_skip"] == 0


def test_a_picture_is_begun_from_in_its_own_size(client: ScriptedClient, page: AppTest) -> None:
    bring(page, photo(192, 96))
    assert page.number_input(key="width").value == 192
    assert page.number_input(key="height").value == 96
    page.slider(key="strength").set_value(0.6)
    draw(page, "")
    asked = last_asked(client)
    assert (asked["width"], asked["height"], asked["strength"]) == (192, 96, 0.6)
    assert Image.open(io.BytesIO(asked["image"])).tobytes() == (
        Image.open(io.BytesIO(photo(192, 96))).tobytes()
    )
    assert "mask" not in asked
    assert "From a picture" in words(page)
    page.button(key="remove").click().run()
    assert page.number_input(key="width").value == MODEL.width
    draw(page)
    assert not {"image", "strength"} & last_asked(client).keys()


def test_a_picture_is_drawn_in_what_the_model_can_of_its_size(page: AppTest) -> None:
    bring(page, photo(1000, 500))
    assert page.number_input(key="width").value == MODEL.max_side
    assert page.number_input(key="height").value == MODEL.max_side // 2


def test_what_is_transparent_in_a_picture_is_marked(client: ScriptedClient, page: AppTest) -> None:
    image = Image.open(io.BytesIO(photo()))
    image.putalpha(mask())
    draw(bring(page, file_of(image)))
    marked = Image.open(io.BytesIO(last_asked(client)["mask"]))
    assert marked.getbbox() == (48, 0, 96, 64)


def test_a_file_that_is_no_picture_is_told(client: ScriptedClient, page: AppTest) -> None:
    bring(page, b"no picture at all")
    assert "**Picture** is no picture that can be read" in page.warning[0].value
    draw(page)
    assert "image" not in last_asked(client)
    bring(page, photo())
    assert not page.warning


def test_a_mask_comes_from_a_file_and_goes_again(client: ScriptedClient, page: AppTest) -> None:
    bring(page, photo())
    bring(page, file_of(mask(192, 128)), "mask")
    draw(page)
    assert Image.open(io.BytesIO(last_asked(client)["mask"])).tobytes() == mask().tobytes()
    assert "where it is marked" in words(page)
    page.button(key="unmask").click().run()
    draw(page)
    assert "mask" not in last_asked(client)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (b"no picture", "**Mask** is no picture"),
        (file_of(mask(64, 64)), "not the picture's proportions"),
        (file_of(Image.new("L", (96, 64))), "marks nothing to draw anew"),
    ],
    ids=["broken", "other proportions", "black"],
)
def test_a_mask_that_does_not_fit_is_told(page: AppTest, file: bytes, told: str) -> None:
    bring(page, photo())
    bring(page, file, "mask")
    assert told in page.warning[0].value
    assert visitor_of(page).start.mask is None


def test_a_picture_of_the_gallery_is_begun_from(client: ScriptedClient, page: AppTest) -> None:
    png = metadata.encode(Pixels(128, 64, bytes(128 * 64 * 3)))
    client.answer = lambda *_, **__: iter(
        [replace(picture_of(), png=png, width=128, height=64), Completed()]
    )
    draw(page)
    press(page, "Use as input")
    assert page.number_input(key="height").value == 64
    draw(page)
    assert Image.open(io.BytesIO(last_asked(client)["image"])).size == (128, 64)
    page.toggle(key="compared").set_value(True).run()
    assert not page.exception


def test_adapters_are_chosen_with_a_weight_each(client: ScriptedClient, page: AppTest) -> None:
    assert page.multiselect(key="loras").options == ["ink", "gold"]
    page.multiselect(key="loras").set_value(["ink", "gold"]).run()
    assert "ink drawing, sumi\\_e" in words(page)
    page.slider(key="weight of ink").set_value(0.4)
    draw(page)
    assert last_asked(client)["loras"] == [
        LoraWeight("ink", 0.4, INK.hash),
        LoraWeight("gold", 1.0, GOLD.hash),
    ]
    assert "ink 0.4 · gold 1" in words(page)


def test_adapters_that_come_and_go_leave_the_form_as_it_is(
    client: ScriptedClient, page: AppTest
) -> None:
    page.multiselect(key="loras").set_value(["ink", "gold"]).run()
    page.slider(key="steps").set_value(9)
    draw(page)
    client.served = replace(CAPABLE, loras=(GOLD, LoraInfo("new", "1111111111")))
    page.run()
    assert page.slider(key="steps").value == 9
    assert page.multiselect(key="loras").value == ["gold"]
    draw(page)
    assert [lora.name for lora in last_asked(client)["loras"]] == ["gold"]


def test_control_nets_are_chosen_with_a_picture_each(client: ScriptedClient, page: AppTest) -> None:
    assert page.multiselect(key="controls").options == ["canny"]
    page.multiselect(key="controls").set_value(["canny"]).run()
    bring(page, b"no picture", "control canny")
    assert "is no picture" in page.warning[0].value
    bring(page, photo(), "control canny")
    page.slider(key="scale of canny").set_value(0.5)
    page.slider(key="window of canny").set_value((0.0, 0.6))
    page.selectbox(key="way of canny").set_value("canny")
    draw(page)
    canny = Control("canny", photo(), 0.5, 0.0, 0.6, "canny", CANNY.hash)
    assert last_asked(client)["controls"] == [canny]
    assert "steered by canny 0.5" in words(page)
    steered = order_of(page)
    page.button(key="forget canny").click().run()
    page.multiselect(key="controls").set_value([]).run()
    draw(page)
    assert "controls" not in last_asked(client)
    piece = next(each for each in visitor_of(page).history if each.order == steered)
    page.button(key=f"Draw again small {piece.id}").click().run()
    settle(page)
    page.button(key="draw").click().run()
    settle(page)
    assert last_asked(client)["controls"] == [canny]


def test_a_picture_is_enlarged_unless_it_begins_from_another(
    client: ScriptedClient, page: AppTest
) -> None:
    page.slider(key="hires_scale").set_value(1.5)
    page.number_input(key="hires_strength").set_value(0.4)
    page.number_input(key="hires_steps").set_value(10)
    page.selectbox(key="hires_upscaler").set_value("Sharp")
    client.answer = lambda *_, **__: iter(drawn(steps=24))
    draw(page)
    asked = last_asked(client)
    assert (asked["hires_scale"], asked["hires_strength"], asked["hires_steps"]) == (1.5, 0.4, 10)
    assert asked["hires_upscaler"] == "Sharp"
    assert "enlarged 1.5 × by Sharp, changed by 0.4 of 10 steps" in words(page)
    bring(page, photo())
    assert page.slider(key="hires_scale").disabled
    draw(page)
    assert "hires_scale" not in last_asked(client)
    # It is still there when the picture is gone.
    page.button(key="remove").click().run()
    draw(page)
    assert last_asked(client)["hires_scale"] == 1.5
    # And an upscaler that is gone is not asked for.
    client.served = replace(CAPABLE, upscalers=())
    page.run()
    draw(page)
    assert "hires_upscaler" not in last_asked(client)


def test_drawing_again_restores_all_of_it(client: ScriptedClient, page: AppTest) -> None:
    page.multiselect(key="loras").set_value(["ink"]).run()
    page.slider(key="weight of ink").set_value(-0.5)
    page.number_input(key="clip_skip").set_value(2)
    bring(bring(page, photo()), file_of(mask()), "mask")
    page.slider(key="strength").set_value(0.5)
    draw(page, "a fox")
    begun = order_of(page)
    page.button(key="remove").click().run()
    page.multiselect(key="loras").set_value([]).run()
    page.slider(key="hires_scale").set_value(2.0)
    draw(page, "a hen")
    enlarged = order_of(page)
    for order in (begun, enlarged):
        piece = next(each for each in visitor_of(page).history if each.order == order)
        page.button(key=f"Draw again small {piece.id}").click().run()
        settle(page)
        assert order_of(page) == order
        # And the next one is drawn like it.
        page.button(key="draw").click().run()
        settle(page)
        assert order_of(page) == replace(order, seed=1)


def test_what_was_drawn_with_another_model_is_drawn_again_with_its_options(
    client: ScriptedClient, page: AppTest
) -> None:
    client.others = [replace(MODEL, id="large", steps=9)]
    page.run()
    page.slider(key="steps").set_value(3)
    draw(page)
    first = visitor_of(page).history.newest
    page.selectbox(key="model").set_value("large").run()
    assert page.slider(key="steps").value == 9
    page.button(key=f"Draw again {first.id}").click().run()
    settle(page)
    assert page.selectbox(key="model").value == MODEL.id
    assert page.slider(key="steps").value == 3


def test_a_model_that_takes_no_picture_is_drawn_with_without_it(
    client: ScriptedClient, page: AppTest
) -> None:
    bring(page, photo())
    client.others = [replace(MODEL, id="words")]
    page.run()
    page.selectbox(key="model").set_value("words").run()
    draw(page)
    assert "image" not in last_asked(client)
    page.selectbox(key="model").set_value(CAPABLE.id).run()
    assert page.number_input(key="width").value == 96
    draw(page)
    assert "image" in last_asked(client)


def test_all_that_draws_a_picture_again_is_shown_as_the_server_wrote_it(
    client: ScriptedClient, page: AppTest
) -> None:
    text = "a fox <lora:ink:0.4>\nSteps: 2, Init image hash: cc7f2b0976"
    picture: Picture = replace(picture_of(), png=metadata.encode(Pixels(1, 1, bytes(3)), text))
    client.answer = lambda *_, **__: iter([picture, Completed()])
    draw(page)
    assert [code.value for code in page.code] == [text]
