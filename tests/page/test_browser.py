"""The page in a real browser, with a real server behind it."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import Locator, Page, expect

from tests.e2e.harness import Server, eventually
from tests.e2e.test_cancellation import is_idle
from tests.page.conftest import KEY
from tests.page.harness import ask, gallery, result, streamlit
from text2image.client import Client
from text2image.core.messages import Progress, Status

PIXELS = """image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL();
}"""
# What the engine promises of two drawings from one seed, of 255.
SAME = 2


@pytest.fixture
def idle(server: Server) -> Status:
    """The server's status before: nothing in flight."""
    return server.wait_for(is_idle, "the engine is idle")


def ask_for_long(page: Page) -> None:
    """Begins a drawing that lasts until it is stopped, and waits for its first steps."""
    page.get_by_role("slider", name="Steps").press("End")
    page.get_by_role("spinbutton", name="Pictures").fill("4")
    ask(page, "a castle")
    expect(page.get_by_text(re.compile(r"Step \d+ of 600"))).to_be_visible()


def button(page: Page, name: str) -> Locator:
    return page.locator(".st-key-stage").get_by_role("button", name=name, exact=True)


def picture(image: Locator) -> Image.Image:
    """What an image of the page shows, from the browser's memory: Streamlit serves each for a moment only."""
    expect(image).to_have_js_property("complete", True)
    _, _, data = image.evaluate(PIXELS).partition(",")
    return Image.open(io.BytesIO(b64decode(data))).convert("RGB")


def corner(image: Image.Image) -> list[float]:
    """The mean colour of its upper left corner."""
    return ImageStat.Stat(image.crop((0, 0, 12, 12))).mean


def difference(one: Image.Image, other: Image.Image) -> int:
    """The most that any two of their pixels differ by, of 255."""
    bands = ImageChops.difference(one, other).getextrema()
    return max(high for _, high in bands)


def average(image: Image.Image) -> float:
    return sum(ImageStat.Stat(image).mean) / 3


def paint_left(page: Page, canvas: Locator) -> None:
    """Paints over the left third of a canvas with the brush as it is, in one stroke, and waits until that is known."""
    box = canvas.bounding_box()
    assert box is not None
    sides = (box["x"] + 8, box["x"] + box["width"] / 3 - 14)
    page.mouse.move(box["x"] + 8, box["y"] + 8)
    page.mouse.down()
    for share in (0.15, 0.35, 0.55, 0.75, 0.9):
        sides = sides[::-1]
        for x in sides:
            page.mouse.move(x, box["y"] + share * box["height"], steps=4)
    page.mouse.up()
    expect(page.get_by_text("the rest stays")).to_be_visible()
    app = page.get_by_test_id("stApp")
    expect(app).to_have_attribute("data-test-script-state", "notRunning")


def stopped(server: Server, before: Status) -> None:
    """Waits for the one request since `before` to be cancelled."""
    after = server.wait_for(
        lambda status: status.counters.cancelled == before.counters.cancelled + 1,
        "the work is cancelled",
    )
    assert after.counters.steps_saved > before.counters.steps_saved
    assert after.counters.completed == before.counters.completed


def test_enter_draws_and_the_picture_follows_the_prompt(page: Page) -> None:
    ask(page, "a cat on a blue background")
    expect(result(page)).to_have_attribute("alt", "a cat on a blue background")
    red, _, blue = corner(picture(result(page)))
    assert blue > red + 50
    ask(page, "a cat on a red background")
    expect(result(page)).to_have_attribute("alt", "a cat on a red background")
    red, _, blue = corner(picture(result(page)))
    assert red > blue + 50
    expect(gallery(page)).to_have_count(2)


def test_a_picture_can_be_downloaded_drawn_again_and_varied(page: Page, tmp_path: Path) -> None:
    ask(page, "a red apple")
    expect(gallery(page)).to_have_count(1)
    with page.expect_download() as download:
        button(page, "Download").click()
    file = tmp_path / "apple.png"
    download.value.save_as(file)
    first = Image.open(file)
    assert first.text["parameters"].startswith("a red apple\n")
    button(page, "Draw again").click()
    expect(gallery(page)).to_have_count(2)
    assert difference(picture(gallery(page).first), first) <= SAME
    button(page, "Vary").click()
    expect(gallery(page)).to_have_count(3)
    assert difference(picture(gallery(page).first), first) > SAME


@pytest.mark.parametrize("by", ["button", "keyboard"])
def test_cancel_stops_the_work_after_a_preview(
    page: Page, server: Server, idle: Status, by: str
) -> None:
    ask_for_long(page)
    live = page.get_by_alt_text("The picture as it stands").first
    eventually(lambda: len(picture(live).getcolors(2**16)) > 1, "a preview is seen")
    if by == "button":
        page.get_by_role("button", name="Cancel").click()
    else:
        page.keyboard.press("Escape")
    expect(page.get_by_text("Cancelled")).to_be_visible()
    stopped(server, idle)


def test_a_visitor_who_closes_the_tab_stops_the_work(
    page: Page, server: Server, idle: Status
) -> None:
    ask_for_long(page)
    page.close()
    stopped(server, idle)


def test_a_busy_server_is_asked_again_when_its_delay_is_over(
    page: Page, server: Server, idle: Status
) -> None:
    with Client(server.address, api_key=KEY) as other:
        events = other.stream("a castle", steps=150, n=2)
        assert any(isinstance(event, Progress) for event in events)
        ask(page, "a fox")
        expect(page.get_by_text("The server is busy")).to_be_visible()
        expect(page.get_by_role("button", name=re.compile(r"Try again in \d+ s"))).to_be_disabled()
        events.close()
    page.get_by_role("button", name="Try again", exact=True).click()
    expect(result(page)).to_have_attribute("alt", "a fox")


def test_bad_input_is_named_and_can_be_mended(page: Page) -> None:
    page.get_by_role("spinbutton", name="Width").fill("100")
    ask(page, "a fox")
    expect(page.get_by_text("Width is 100 pixels; it must be a multiple of 8.")).to_be_visible()
    page.get_by_role("spinbutton", name="Width").fill("96")
    ask(page, "a fox")
    expect(page.get_by_text("96 × 128")).to_be_visible()


def test_a_server_that_is_restarted_is_waited_for(page: Page, server: Server) -> None:
    ask(page, "a red apple")
    expect(gallery(page)).to_have_count(1)
    server.stop()
    ask(page, "a penguin")
    expect(page.get_by_text("The server does not answer")).to_be_visible()
    server.start()
    expect(page.get_by_text("The server is starting")).to_be_visible()
    page.get_by_role("button", name="Try again", exact=True).click()
    expect(result(page)).to_have_attribute("alt", "a penguin")
    expect(gallery(page)).to_have_count(2)


def test_a_key_is_asked_for_and_draws(
    visit: Callable[..., Page], server: Server, tmp_path: Path
) -> None:
    with streamlit(tmp_path, T2I_SERVER=server.address) as keyless:
        page = visit(keyless)
        field = page.get_by_role("textbox", name="API key")
        field.fill("t2i_wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("The API key was not accepted")).to_be_visible()
        field.fill(KEY)
        page.keyboard.press("Enter")
        # What is typed while the page looks at the key is lost with the form that it replaces.
        expect(page.get_by_text("The API key was not accepted")).to_be_hidden()
        ask(page, "a fox")
        expect(result(page)).to_have_attribute("alt", "a fox")


def test_a_picture_is_brought_marked_drawn_and_begun_from_again(page: Page) -> None:
    blue, content = Image.new("RGB", (256, 128), (20, 40, 230)), io.BytesIO()
    blue.save(content, "PNG")
    page.get_by_text("Begin from a picture").click()
    file = {"name": "blue.png", "mimeType": "image/png", "buffer": content.getvalue()}
    page.locator("input[type=file]").set_input_files(file)
    canvas = page.locator(".st-key-inputs canvas").last
    expect(canvas).to_be_visible()
    # What the model has as defaults reached the browser, though the click came while the page did.
    expect(page.get_by_role("slider", name="Steps")).to_have_value("6")
    expect(page.get_by_role("spinbutton", name="Width")).to_have_value("256")
    paint_left(page, canvas)
    ask(page, "a red apple")
    expect(page.get_by_text("where it is marked")).to_be_visible()
    drawn = picture(result(page))
    assert drawn.size == (256, 128)
    changes = ImageChops.difference(drawn, blue)
    left, right = (average(changes.crop((x, 16, x + 64, 112))) for x in (8, 184))
    assert left > 3 * right
    page.get_by_text("Before and after").click()
    page.get_by_role("slider", name="Before and after").press("End")
    before = page.get_by_alt_text("What it began from")
    expect(before).to_have_css("clip-path", "inset(0px 0% 0px 0px)")
    button(page, "Use as input").click()
    begun = page.locator(".st-key-inputs canvas").first

    def is_shown() -> bool:
        _, _, data = begun.evaluate("canvas => canvas.toDataURL()").partition(",")
        shown = Image.open(io.BytesIO(b64decode(data))).convert("RGB").resize(drawn.size)
        return average(ImageChops.difference(shown, drawn)) < SAME

    eventually(is_shown, "the canvas shows what was drawn")
