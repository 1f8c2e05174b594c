"""The page fits a desktop and a phone, in light and in dark; `make screenshots` keeps what these tests see in docs/."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageStat
from playwright.sync_api import Page, expect

from tests.e2e.harness import ROOT
from tests.page.conftest import FOR_DOCUMENTS
from tests.page.harness import ask, gallery, result

PHONE = {
    "viewport": {"width": 390, "height": 844},
    "user_agent": "Mozilla/5.0 (Linux; Android 16) AppleWebKit/537.36 Chrome/156.0 Mobile Safari/537.36",
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}
IDEAS = ("a penguin in the snow", "a red apple", "a rocket in space", "a cat on a blue background")


@pytest.fixture
def shoot(tmp_path: Path) -> Callable[[Page, str], Image.Image]:
    """Takes a screenshot; it goes into docs/ only if it is asked for."""
    folder = ROOT / "docs" if FOR_DOCUMENTS else tmp_path

    def take(page: Page, name: str) -> Image.Image:
        path = folder / f"{name}.png"
        page.screenshot(path=path, animations="disabled")
        return Image.open(path)

    return take


def draw(page: Page) -> None:
    """Draws one picture, or as many as look well in a gallery."""
    for count, idea in enumerate(IDEAS if FOR_DOCUMENTS else IDEAS[-1:], 1):
        ask(page, idea)
        expect(gallery(page)).to_have_count(count)


@pytest.mark.parametrize(("scheme", "name"), [("light", "page"), ("dark", "page-dark")])
def test_the_page_is_light_or_dark_as_its_visitor_likes(
    visit: Callable[..., Page], shoot: Callable[[Page, str], Image.Image], scheme: str, name: str
) -> None:
    page = visit(color_scheme=scheme)
    draw(page)
    expect(page.get_by_role("slider", name="Steps")).to_be_visible()
    brightness = ImageStat.Stat(shoot(page, name).convert("L")).median[0]
    assert brightness > 200 if scheme == "light" else brightness < 60


def test_the_page_fits_a_phone(
    visit: Callable[..., Page], shoot: Callable[[Page, str], Image.Image]
) -> None:
    page = visit(**PHONE)
    button = page.get_by_role("button", name="Draw", exact=True)
    expect(button).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("slider", name="Steps")).to_be_hidden()
    draw(page)
    shoot(page, "page-phone")
    wider = "element => element.scrollWidth > element.clientWidth"
    assert not page.locator("[data-testid=stMain]").evaluate(wider)
    box = result(page).bounding_box()
    assert box is not None
    assert 300 < box["width"] <= PHONE["viewport"]["width"]
