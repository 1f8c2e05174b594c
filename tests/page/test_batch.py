"""Batches on the page: lists become jobs that the server keeps, with a sheet and a file of all pictures."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, expect
from streamlit.testing.v1 import AppTest

from frontend import jobs as shown_jobs
from frontend.batches import SHEET, layout_in, layout_of, requests_of
from tests.e2e.harness import eventually
from tests.jobs import PROMPT_THAT_FAILS, JobServer, colour_of, job_server_beside
from tests.page.conftest import DESKTOP
from tests.page.harness import ScriptedClient, streamlit
from text2image.client import Client
from text2image.core.errors import InvalidRequest
from text2image.core.tables import parse_axis, parse_seeds
from text2image.gateway.sheets import SIDE
from text2image.jobs.records import JobState


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[JobServer]:
    with job_server_beside(tmp_path / "jobs") as keeper:
        yield keeper


@pytest.fixture
def client(client: ScriptedClient, keeper: JobServer) -> Iterator[ScriptedClient]:
    """Models as the test has written them, and the jobs of a real server."""
    with Client(keeper.address, api_key="ann") as real:
        client.jobs = real.jobs
        yield client


@pytest.fixture
def page(client: ScriptedClient, open_page: Callable[..., AppTest]) -> AppTest:
    return open_batch(open_page())


def open_batch(page: AppTest) -> AppTest:
    page.session_state["view"] = "Batch"
    return page.run()


def submit(page: AppTest, text: str, seeds: str = "") -> AppTest:
    page.text_area(key="batch_text").input(text)
    page.text_input(key="batch_seeds").input(seeds)
    page.button(key="draw_batch").click().run()
    assert not page.exception
    return page


def test_a_list_becomes_a_job_that_another_tab_finds(
    page: AppTest, client: ScriptedClient, open_page: Callable[..., AppTest]
) -> None:
    submit(page, "a fox\nan owl", "1-2")
    (job,) = client.jobs.list().jobs
    assert (job.name, job.counts.total) == ("a fox", 4)
    assert list(client.jobs.watch(job.id))[-1].state is JobState.COMPLETED
    other = open_batch(open_page())
    assert other.selectbox[0].value == job.id
    assert "4 of 4" in other.get("progress")[0].proto.text
    other.button(key="job_delete").click().run()
    assert client.jobs.list().jobs == ()


def test_a_job_is_paused_goes_on_and_is_cancelled(
    page: AppTest, client: ScriptedClient, keeper: JobServer
) -> None:
    keeper.gate.clear()
    submit(page, "a fox")
    (job,) = client.jobs.list().jobs
    page.button(key="job_pause").click().run()
    assert client.jobs.get(job.id).state is JobState.PAUSED
    page.button(key="job_resume").click().run()
    assert client.jobs.get(job.id).state is not JobState.PAUSED
    page.button(key="job_cancel").click().run()
    assert client.jobs.get(job.id).state is JobState.CANCELLED


def test_what_failed_says_why_and_can_be_drawn_again(page: AppTest, client: ScriptedClient) -> None:
    submit(page, PROMPT_THAT_FAILS)
    (job,) = client.jobs.list().jobs
    list(client.jobs.watch(job.id))
    page.run()
    assert "is to fail" in page.warning[0].value
    page.button(key="job_retry").click().run()
    eventually(lambda: client.jobs.results(job.id).items[0].attempts == 2, "it is tried again")


@pytest.mark.parametrize(
    ("text", "seeds", "reason"),
    [
        ("", "", "none"),
        ("prompt,steps\na fox,many\n", "", "line 2"),
        ("a fox", "x", "no seed"),
        ("prompt,image\na fox,/etc/passwd\n", "", "names image"),
    ],
)
def test_what_is_no_list_is_told_and_makes_no_job(
    page: AppTest, client: ScriptedClient, text: str, seeds: str, reason: str
) -> None:
    submit(page, text, seeds)
    assert reason in page.warning[0].value
    assert client.jobs.list().jobs == ()


@pytest.mark.parametrize("field", ["image", "mask", "controls"])
@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_no_list_opens_a_file_of_the_pages_machine(name: str, field: str) -> None:
    value = "canny=/etc/passwd" if field == "controls" else "/etc/passwd"
    text = f"prompt,{field}\na fox,{value}\n"
    if name.endswith("jsonl"):
        text = json.dumps({"prompt": "a fox", field: [value] if field == "controls" else value})
    with pytest.raises(InvalidRequest, match=f"names {field}"):
        requests_of(name, text, [])


def test_the_sheet_has_what_is_varied_last_from_left_to_right(keeper: JobServer) -> None:
    axes = [parse_axis("steps", ["10", "20"]), parse_seeds("1-3")]
    rows = requests_of("", "a fox\nan owl", axes)
    metadata = {SHEET: layout_of(axes)}
    columns, varied = ["seed 1", "seed 2", "seed 3"], ["steps 10", "steps 20"]
    assert layout_in(metadata) == (columns, varied)
    with Client(keeper.address, api_key="ann") as client:
        job = client.jobs.submit([row.fields for row in rows], metadata=metadata)
        job = list(client.jobs.watch(job.id))[-1]
        sheet = Image.open(io.BytesIO(shown_jobs.sheet_of_job(client, job)))
        packed = zipfile.ZipFile(io.BytesIO(shown_jobs.zip_of(client, job)))
    assert sheet.height > 4 * SIDE
    middles = [
        sheet.getpixel((sheet.width - SIDE // 2 - at, sheet.height - SIDE // 2))
        for at in (0, SIDE, 2 * SIDE)
    ]
    assert middles == [colour_of(3), colour_of(2), colour_of(1)]
    assert packed.testzip() is None
    assert packed.namelist()[0] == "00001_fox.png"
    assert len(packed.namelist()) == 12


@pytest.mark.parametrize("written", [{}, {"sheet": "7"}, {"sheet": "{"}, {"sheet": "[]"}])
def test_jobs_of_others_have_a_plain_sheet(written: dict[str, str]) -> None:
    assert layout_in(written) == ([""], [""])


def test_a_batch_is_drawn_shown_and_downloaded(
    browser: Browser, keeper: JobServer, tmp_path: Path
) -> None:
    """In a real browser; the page is loaded anew in between, as another tab is."""
    variables = {"T2I_SERVER": keeper.address, "T2I_API_KEY": "ann"}
    with streamlit(tmp_path, **variables) as url, browser.new_context(**DESKTOP) as context:
        page = context.new_page()
        page.goto(url)
        keeper.gate.clear()
        page.get_by_text("Batch", exact=True).click()
        page.get_by_role("textbox", name="Prompts").fill("a cat on a blue background\na red apple")
        page.get_by_role("textbox", name="Seeds").fill("1-3")
        page.get_by_role("button", name="Draw all").click()
        expect(page.get_by_text("0 of 6")).to_be_visible()
        page.reload()
        page.get_by_text("Batch", exact=True).click()
        expect(page.get_by_text("0 of 6")).to_be_visible()
        keeper.gate.set()
        expect(page.get_by_text("6 of 6")).to_be_visible()
        expect(page.get_by_role("img", name="All pictures of the job")).to_be_visible()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download all").click()
        saved = tmp_path / "all.zip"
        download.value.save_as(saved)
    assert len(zipfile.ZipFile(saved).namelist()) == 6
