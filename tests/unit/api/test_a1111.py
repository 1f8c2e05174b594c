"""A1111's clients see how far their drawings are, end them, choose a model, and nobody else's are any of it."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.init_images import file_of, picture
from tests.samples import MODEL
from tests.unit.api.test_openai import Served, eventually
from tests.unit.gateway.scripted import HANG, READY, ScriptedRunner, Step, image
from text2image.api.a1111.state import Choices, Job, Jobs
from text2image.api.app import http_app
from text2image.core.errors import Unavailable
from text2image.core.keys import ApiKey, KeysFile, hash_of
from text2image.core.lifecycle import Work
from text2image.core.messages import (
    Completed,
    Embedding,
    LoraInfo,
    ModelState,
    ModelStatus,
    Pixels,
    Progress,
    Queued,
)
from text2image.core.settings import get_settings
from text2image.gateway import metadata
from text2image.gateway.auth import Authenticator, KeyRing
from text2image.gateway.generate import Gateway

BODY = {
    "prompt": "a fox, red",
    "negative_prompt": "dark: and cold",
    "seed": 7,
    "steps": 4,
    "batch_size": 2,
}
HALF = Progress(0, 2, 4, Pixels(2, 1, bytes(6)))
# One picture of two is finished, of the other half of the steps are taken.
STARTED: tuple[Step, ...] = (Queued(1.0), image(1), HALF, HANG)
OTHER = replace(MODEL, id="anime", revision="0123456789abcdef")
# As A1111 takes the last line of its parameters apart.
A1111_PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


class Client(httpx.AsyncClient):
    """Asks an application in this process."""

    def __init__(self, app: Any, address: str = "192.0.2.1") -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True, client=(address, 1))
        super().__init__(transport=transport, base_url="http://localhost/sdapi/v1")

    async def told(self, path: str, **query: str) -> Any:
        answer = await self.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with Served(tmp_path, Queued(1.0), image(0), image(1), Completed()) as served:
        yield served


@pytest.fixture
async def hanging(tmp_path: Path) -> AsyncIterator[Served]:
    async with Served(tmp_path, *STARTED) as served:
        yield served


async def started(client: Client, count: int = 1, **fields: Any) -> asyncio.Task[httpx.Response]:
    """A drawing that has come to where its runner hangs."""
    drawing = asyncio.create_task(client.post("/txt2img", json={**BODY, **fields}))
    jobs: Jobs = client._transport.app.state.a1111.jobs  # type: ignore[attr-defined]
    await eventually(lambda: len(jobs.of("address:192.0.2.1")) == count)
    await eventually(lambda: jobs.of("address:192.0.2.1")[-1].progress)
    return drawing


async def test_pictures_are_answered_with_what_a1111_tells_of_them(served: Served) -> None:
    async with Client(served.app) as client:
        answer = await client.post("/txt2img", json=BODY)
    told = answer.json()
    info = json.loads(told["info"])
    assert len(told["images"]) == len(info["infotexts"]) == 2
    assert (info["seed"], info["all_seeds"]) == (7, [7, 8])
    assert info["all_prompts"] == [BODY["prompt"]] * 2
    assert (info["sampler_name"], info["sd_model_name"]) == ("DPM++ 2M", "embedded")
    assert (told["parameters"]["steps"], told["parameters"]["n_iter"]) == (4, None)
    for file, text in zip(told["images"], info["infotexts"], strict=True):
        assert metadata.read(base64.b64decode(file)) == text
        prompt, negative, line = text.split("\n")
        assert (prompt, negative) == (BODY["prompt"], f"Negative prompt: {BODY['negative_prompt']}")
        settings = dict(A1111_PARAMETER.findall(line))
        assert (settings["Steps"], settings["Size"]) == ("4", "128x128")


async def test_pictures_are_left_out_if_they_are_not_wanted(served: Served) -> None:
    async with Client(served.app) as client:
        told = (await client.post("/txt2img", json={**BODY, "send_images": False})).json()
    assert told["images"] == []
    assert len(json.loads(told["info"])["infotexts"]) == 2


async def test_progress_tells_how_far_a_drawing_is_and_shows_it(hanging: Served) -> None:
    async with Client(hanging.app) as client:
        idle = await client.told("/progress")
        assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
        drawing = await started(client, force_task_id="task(1)")
        told = await client.told("/progress")
        assert told["progress"] == (1 + 0.5) / 2
        assert told["eta_relative"] > 0
        state = told["state"]
        assert (state["job"], state["job_count"], state["job_no"]) == ("task(1)", 2, 1)
        assert (state["sampling_step"], state["sampling_steps"]) == (2, 4)
        assert base64.b64decode(told["current_image"]).startswith(b"\x89PNG")
        assert (await client.told("/progress", skip_current_image="true"))["current_image"] is None
        assert (await client.told("/progress", id_task="task(1)"))["progress"] == told["progress"]
        assert (await client.told("/progress", id_task="task(2)"))["progress"] == 0
        drawing.cancel()


async def test_the_page_of_a1111_follows_a_task(hanging: Served) -> None:
    async with Client(hanging.app) as client:
        url = "http://localhost/internal/progress"
        drawing = await started(client, force_task_id="task(1)")
        told = (await client.post(url, json={"id_task": "task(1)", "id_live_preview": -1})).json()
        assert (told["active"], told["completed"], told["progress"]) == (True, False, 0.75)
        assert told["live_preview"].startswith("data:image/png;base64,")
        again = {"id_task": "task(1)", "id_live_preview": told["id_live_preview"]}
        assert (await client.post(url, json=again)).json()["live_preview"] is None
        await client.post("/interrupt")
        await drawing
        over = (await client.post(url, json={"id_task": "task(1)"})).json()
        assert (over["active"], over["completed"]) == (False, True)
        assert (await client.post(url, json={"id_task": "task(2)"})).json()["completed"] is False


async def test_whoever_interrupts_gets_what_is_finished(hanging: Served) -> None:
    async with Client(hanging.app) as client:
        drawing = await started(client)
        assert (await client.post("/interrupt")).json() == {}
        told = (await drawing).json()
        assert len(told["images"]) == 1
        info = json.loads(told["info"])
        assert (info["all_seeds"], info["comments"]) == ([8], ["the drawing was interrupted"])
        await hanging.runner.cancelled.wait()
        assert (await client.told("/progress"))["state"]["job_count"] == 0


async def test_or_an_error_if_nothing_is(tmp_path: Path) -> None:
    async with Served(tmp_path, Queued(1.0), HALF, HANG) as served, Client(served.app) as client:
        drawing = await started(client)
        await client.post("/interrupt")
        answer = await drawing
        assert (answer.status_code, answer.json()["error"]) == (499, "Cancelled")
        assert served.counted() == {"CANCELLED": 1}


async def test_skip_ends_the_oldest_and_a_name_ends_one(hanging: Served) -> None:
    async with Client(hanging.app) as client:
        first, second, third = [
            await started(client, count, force_task_id=str(count), seed=count)
            for count in (1, 2, 3)
        ]
        await client.post("/skip")
        await first
        await client.post("/interrupt", params={"id_task": "3"})
        await third
        assert not second.done()
        await client.post("/interrupt")
        await second


async def test_nobody_sees_or_ends_the_drawings_of_another(hanging: Served) -> None:
    async with Client(hanging.app) as client, Client(hanging.app, "192.0.2.2") as other:
        drawing = await started(client, force_task_id="task(1)")
        assert (await other.told("/progress", id_task="task(1)"))["state"]["job_count"] == 0
        for path in ("/interrupt", "/skip"):
            await other.post(path, params={"id_task": "task(1)"})
        assert (await client.told("/progress"))["state"]["job_count"] == 2
        assert not drawing.done()
        drawing.cancel()


async def test_whoever_leaves_has_nothing_drawn(hanging: Served) -> None:
    call = hanging.call()
    body = json.dumps(BODY).encode()
    drawing = asyncio.create_task(call.make("POST", "/sdapi/v1/txt2img", body))
    await hanging.runner.hung()
    call.left.set()
    await drawing
    await hanging.runner.cancelled.wait()
    assert hanging.counted() == {"CANCELLED": 1}


async def test_nothing_of_it_is_told_without_a_key(served: Served, tmp_path: Path) -> None:
    file = KeysFile(tmp_path / "keys.json")
    file.add(ApiKey(name="me", sha256=hash_of("secret"), created=datetime.now(UTC)))
    keys = Authenticator(served.metrics, keys=KeyRing(file))
    served.app.state.gateway = Gateway(
        served.runners, None, served.metrics, Work(), authenticator=keys
    )
    asked = [
        (method, path)
        for path, methods in served.app.openapi()["paths"].items()
        for method in methods
        if path.startswith(("/sdapi/", "/internal/"))
    ]
    assert len(asked) > 25
    async with Client(served.app) as client:
        for method, path in asked:
            answer = await client.request(method, f"http://localhost{path}", json={})
            assert answer.status_code == 401, path
            assert answer.headers["WWW-Authenticate"].startswith("Basic ")
            assert answer.json()["error"] == "Unauthenticated"
        client.auth = httpx.BasicAuth("anybody", "secret")
        assert (await client.post("/txt2img", json=BODY)).status_code == 200
        assert (await client.told("/options"))["sd_vae"] == "Automatic"


async def test_errors_are_those_of_a1111(tmp_path: Path) -> None:
    full = Unavailable("full", reason=Unavailable.FULL, retry_after=3)
    async with Served(tmp_path, full) as served, Client(served.app) as client:
        refused = await client.post("/txt2img", json=BODY)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "3")
        assert refused.json() == {
            "error": "Unavailable",
            "detail": "full",
            "body": "",
            "errors": "full",
        }
        bad = (
            await client.post("/txt2img", json={**BODY, "cfg_scale": 50, "cfg": 1, "tiling": 0})
        ).json()
        assert [each["loc"] for each in bad["detail"]] == [["body", "cfg"]]
        bad = (await client.post("/txt2img", json={**BODY, "cfg_scale": 50, "steps": 0})).json()
        assert {each["loc"][1] for each in bad["detail"]} == {"cfg_scale", "steps"}
        for method, path, status in (("GET", "/txt2img", 405), ("POST", "/interrogate", 404)):
            answer = await client.request(method, path)
            assert answer.status_code == status
            assert answer.json()["error"] == "HTTPException"


async def test_a_model_is_chosen_for_the_caller_alone(tmp_path: Path) -> None:
    served = Served(tmp_path, Queued(1.0), image(0), Completed())
    models = (MODEL, OTHER)
    states = [
        ModelStatus(name=each.id, revision=each.revision, state=ModelState.LOADED)
        for each in models
    ]
    status = replace(READY, models=tuple(states))
    served.runner = ScriptedRunner(
        tmp_path / "socket", [Queued(1.0), image(0), Completed()], status=status, others=[OTHER]
    )
    async with served, Client(served.app) as client, Client(served.app, "192.0.2.2") as other:
        await eventually(lambda: len(served.runners.models) == 2)
        titles = [each["title"] for each in await client.told("/sd-models")]
        assert titles == ["embedded [dcfec67f3c]", "anime [0123456789]"]
        options = await client.told("/options")
        # As Open WebUI does it: all of them, with one that is another.
        chosen = await client.post("/options", json={**options, "sd_model_checkpoint": titles[1]})
        assert chosen.json() is None
        assert (await client.told("/options"))["sd_model_checkpoint"] == titles[1]
        assert (await other.told("/options"))["sd_model_checkpoint"] == titles[0]
        drawn = (await client.post("/txt2img", json={"prompt": "a fox"})).json()
        assert json.loads(drawn["info"])["sd_model_name"] == "anime"
        named = {"prompt": "a fox", "override_settings": {"sd_model_checkpoint": "embedded"}}
        drawn = (await client.post("/txt2img", json=named)).json()
        assert json.loads(drawn["info"])["sd_model_name"] == "embedded"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"CLIP_stop_at_last_layers": 2}, "CLIP_stop_at_last_layers"),
        ({"sd_vae": "vae.pt"}, "sd_vae"),
        ({"sd_model_checkpoint": "dall-e-3"}, "sd_model_checkpoint"),
        ({"sd_model_checkpoint": 3}, "sd_model_checkpoint"),
    ],
)
async def test_no_other_option_is_set(served: Served, options: Any, field: str) -> None:
    async with Client(served.app) as client:
        answer = await client.post("/options", json=options)
    assert answer.status_code == 400
    assert [each["loc"] for each in answer.json()["detail"]] == [["body", field]]


async def test_several_processes_keep_no_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = get_settings().model_copy(update={"gateway_workers": 2})
    monkeypatch.setattr("text2image.api.a1111.options.get_settings", lambda: several)
    states = [
        ModelStatus(name=m.id, revision=m.revision, state=ModelState.LOADED) for m in (MODEL, OTHER)
    ]
    served = Served(tmp_path)
    served.runner = ScriptedRunner(
        tmp_path / "socket", status=replace(READY, models=tuple(states)), others=[OTHER]
    )
    async with served, Client(served.app) as client:
        await eventually(lambda: len(served.runners.models) == 2)
        answer = await client.post("/options", json={"sd_model_checkpoint": "anime"})
        assert answer.status_code == 400
        assert "override_settings" in answer.text
        # What is the case already can be said.
        assert (await client.post("/options", json={"sd_model_checkpoint": "embedded"})).is_success


async def test_what_a_model_has_is_listed(tmp_path: Path) -> None:
    served = Served(tmp_path)
    model = replace(
        MODEL,
        loras=(LoraInfo("ink", "0123456789"), LoraInfo("odd", "1", fault="too old")),
        embeddings=(Embedding("film", "0", 2),),
    )
    served.runner = ScriptedRunner(tmp_path / "socket", model=model)
    async with served, Client(served.app) as client:
        assert [each["name"] for each in await client.told("/loras")] == ["ink"]
        assert (await client.told("/embeddings"))["loaded"]["film"]["vectors"] == 2
        names = [each["name"] for each in await client.told("/samplers")]
        assert {"Euler a", "DPM++ 2M", "DDIM"} <= set(names)
        labels = [each["label"] for each in await client.told("/schedulers")]
        assert labels[:2] == ["Automatic", "Karras"]
        assert [each["name"] for each in await client.told("/upscalers")] == ["None", "Lanczos"]
        assert (await client.told("/memory"))["ram"]["total"] > 0
        for path in ("sd-vae", "hypernetworks", "face-restorers", "prompt-styles"):
            assert await client.told(f"/{path}") == []


async def test_a_picture_tells_what_it_carries(served: Served) -> None:
    async with Client(served.app) as client:
        drawn = (await client.post("/txt2img", json=BODY)).json()
        told = (await client.post("/png-info", json={"image": drawn["images"][0]})).json()
        assert told["info"] == json.loads(drawn["info"])["infotexts"][0]
        said = told["parameters"]
        assert (said["Prompt"], said["Steps"], said["Size-1"]) == (BODY["prompt"], "4", "128")
        plain = base64.b64encode(file_of(picture())).decode()
        told = (await client.post("/png-info", json={"image": plain})).json()
        assert told == {"info": "", "items": {}, "parameters": {}}
        for junk in ("", "#", "aGk="):
            answer = await client.post("/png-info", json={"image": junk})
            assert answer.json()["detail"][0]["loc"] == ["body", "image"]


async def test_a_picture_is_enlarged_and_keeps_what_it_carries(served: Served) -> None:
    file = metadata.encode(Pixels(64, 32, bytes(64 * 32 * 3)), "a fox\nSteps: 1")
    image = base64.b64encode(file).decode()

    async with Client(served.app) as client:

        async def enlarged(**fields: Any) -> tuple[int, int]:
            answer = await client.post("/extra-single-image", json={"image": image, **fields})
            assert answer.status_code == 200, answer.text
            png = base64.b64decode(answer.json()["image"])
            assert metadata.read(png) == "a fox\nSteps: 1"
            return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])

        lanczos = {"upscaler_1": "Lanczos"}
        sides = {"resize_mode": 1, "upscaling_resize_w": 96, "upscaling_resize_h": 96}
        assert await enlarged() == (64, 32)
        assert await enlarged(**lanczos, upscaling_resize=1.5) == (96, 48)
        assert await enlarged(**lanczos, **sides) == (96, 96)
        assert await enlarged(**lanczos, **sides, upscaling_crop=False) == (192, 96)
        for fields, field in (
            ({"upscaler_1": "R-ESRGAN 4x+"}, "upscaler_1"),
            ({"gfpgan_visibility": 1}, "gfpgan_visibility"),
            ({**lanczos, "upscaling_resize": 0}, "upscaling_resize"),
            (
                {
                    **lanczos,
                    "resize_mode": 1,
                    "upscaling_resize_w": 8192,
                    "upscaling_resize_h": 8192,
                },
                "image",
            ),
        ):
            answer = await client.post("/extra-single-image", json={"image": image, **fields})
            assert (answer.status_code, answer.json()["detail"][0]["loc"]) == (400, ["body", field])


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings = get_settings().model_copy(update={"a1111": False})
    monkeypatch.setattr("text2image.api.app.get_settings", lambda: settings)
    return


@pytest.mark.usefixtures("without")
async def test_it_can_be_switched_off() -> None:
    app = http_app()
    assert not [path for path in app.openapi()["paths"] if "sdapi" in path or "internal" in path]
    async with Client(app) as client:
        assert (await client.post("/txt2img", json=BODY)).status_code == 404


def test_what_is_ended_before_it_has_begun_ends_at_once() -> None:
    job, ended = Job("me", "", 1, "TextToImage"), []
    job.interrupt()
    job.ends_by(lambda: ended.append(True))
    assert ended == [True]


def test_what_is_remembered_is_bounded() -> None:
    choices, jobs = Choices(), Jobs()
    for number in range(3000):
        choices.choose(str(number), "anime")
        with jobs.running(Job(str(number), str(number), 1, "TextToImage")):
            pass
    assert len(choices._models) < 2000
    assert not jobs._running
    assert not jobs.has_ended("0", "0")
    assert jobs.has_ended("2999", "2999")
    assert (choices.of("0"), choices.of("2999")) == (None, "anime")
