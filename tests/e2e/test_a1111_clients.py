"""Clients of A1111's web UI draw with this server: webuiapi by itself, others by the bodies that they send."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.e2e.conftest import NET, UPSCALER
from tests.e2e.harness import Server, eventually
from tests.init_images import file_of, hole, picture, shapes
from text2image.gateway import metadata

SIZE = {"width": 64, "height": 64}
CHEAP = {**SIZE, "steps": 2}
LONG = {**SIZE, "steps": 150, "batch_size": 10}


@pytest.fixture
def api(server: Server) -> Iterator[webuiapi.WebUIApi]:
    api = webuiapi.WebUIApi(host="127.0.0.1", port=server.http_port, sampler="Euler a", steps=2)
    with api.session:
        yield api


def post(server: Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}/sdapi/v1/{path}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def opened(file: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(file)))


def encoded(image: Image.Image) -> str:
    return base64.b64encode(file_of(image)).decode()


def apart(one: Image.Image, other: Image.Image) -> np.ndarray[Any, Any]:
    """How far colours are from each other, by pixel."""
    return np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max(axis=2)


def test_webuiapi_draws_from_text(api: webuiapi.WebUIApi) -> None:
    drawn = api.txt2img(
        prompt="a fox", negative_prompt="dark", seed=1003, cfg_scale=5, batch_size=2, **SIZE
    )
    assert [image.size for image in drawn.images] == [(64, 64)] * 2
    assert drawn.info["all_seeds"] == [1003, 1004]
    params = metadata.parse(drawn.image.info["parameters"])
    assert (params.seed, params.steps, params.sampler) == (1003, 2, "euler ancestral")
    again = api.txt2img(
        prompt="a fox",
        negative_prompt="dark",
        seed=1004,
        cfg_scale=5,
        scheduler="Automatic",
        **SIZE,
    )
    assert apart(again.image, drawn.images[1]).max() <= 2


def test_webuiapi_draws_on_from_a_picture(api: webuiapi.WebUIApi) -> None:
    begun = picture((128, 64))
    drawn = api.img2img(
        images=[begun], prompt="a fox", seed=5, steps=4, cfg_scale=5, denoising_strength=0.5, **SIZE
    )
    assert drawn.image.size == (64, 64)
    assert drawn.info["denoising_strength"] == 0.5
    # It is scaled to that size, as A1111 does where it is told nothing else.
    cut = api.img2img(
        images=[begun], prompt="a fox", seed=5, steps=4, cfg_scale=5, denoising_strength=0.5,
        resize_mode=1, **SIZE
    )  # fmt: skip
    assert apart(drawn.image, cut.image).max() > 20


def test_webuiapi_paints_into_a_picture(api: webuiapi.WebUIApi) -> None:
    begun, mask = picture((64, 64)), hole((64, 64))
    asked = {
        "images": [begun],
        "mask_image": mask,
        "prompt": "a fox",
        "cfg_scale": 5,
        "seed": 5,
        "steps": 4,
    }
    inside, outside = np.asarray(mask) > 0, np.asarray(mask) == 0
    plain = api.img2img(**asked, inpaint_full_res=False, mask_blur=0, **SIZE)
    assert plain.info["extra_generation_params"] == {}
    inverted = api.img2img(
        **asked, inpaint_full_res=False, mask_blur=0, inpainting_mask_invert=1, **SIZE
    )
    changed, other = apart(plain.image, begun), apart(inverted.image, begun)
    # What is not masked stays as it was.
    assert changed[inside].mean() > 5
    assert changed[outside].max() == 0
    assert other[inside].max() == 0
    soft = api.img2img(**asked, inpaint_full_res=False, mask_blur=4, **SIZE)
    edge = apart(soft.image, begun)
    assert edge[outside].max() > 0
    assert edge[0].max() == 0


def test_webuiapi_draws_what_is_masked_at_full_size(api: webuiapi.WebUIApi) -> None:
    begun = picture((192, 160))
    mask = Image.new("L", begun.size)
    mask.paste(255, (40, 32, 72, 64))
    drawn = api.img2img(
        images=[begun], mask_image=mask, prompt="a fox", cfg_scale=5, seed=5, steps=4,
        mask_blur=0, inpaint_full_res=True, inpaint_full_res_padding=8, **SIZE
    )  # fmt: skip
    assert drawn.image.size == begun.size
    assert drawn.info["extra_generation_params"] == {
        "Inpaint area": "Only masked",
        "Masked area padding": 8,
    }
    changed, inside = apart(drawn.image, begun), np.asarray(mask) > 0
    assert changed[~inside].max() == 0
    assert changed[inside].mean() > 5


def test_webuiapi_enlarges_what_it_draws(api: webuiapi.WebUIApi) -> None:
    asked = {"prompt": "a fox", "enable_hr": True, "hr_scale": 1.5, "seed": 5, "cfg_scale": 5}
    drawn = api.txt2img(
        **asked, hr_upscaler=webuiapi.HiResUpscaler.Lanczos, denoising_strength=0.5, **SIZE
    )
    assert drawn.image.size == (96, 96)
    params = metadata.parse(drawn.info["infotexts"][0])
    assert (params.hires_scale, params.hires_strength) == (1.5, 0.5)
    with pytest.raises(RuntimeError, match="hr_upscaler"):
        api.txt2img(**asked, **SIZE)


def test_webuiapi_lists_what_there_is(api: webuiapi.WebUIApi) -> None:
    assert {"Euler a", "DPM++ 2M"} <= set(api.util_get_sampler_names())
    assert "automatic" in api.util_get_scheduler_names()
    (title,) = api.util_get_model_names()
    assert title == api.util_get_current_model()
    assert title.startswith("embedded [")
    assert "zz-film" in api.get_embeddings()["loaded"]
    assert [each["name"] for each in api.get_upscalers()] == ["None", "Lanczos", UPSCALER]
    for listed in (
        api.get_sd_vae, api.get_hypernetworks, api.get_face_restorers, api.get_prompt_styles,
        api.get_realesrgan_models, api.get_latent_upscale_modes, api.get_loras,
    ):  # fmt: skip
        assert listed() == []
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_cmd_flags()["api"] is True
    assert api.get_memory()["ram"]["total"] > 0
    assert api.refresh_checkpoints() is None


def test_webuiapi_sets_the_model_and_nothing_else(api: webuiapi.WebUIApi) -> None:
    assert api.set_options({"sd_model_checkpoint": "embedded"}) is None
    api.util_set_model("embedded")
    assert api.set_options({"CLIP_stop_at_last_layers": 2})["error"] == "InvalidRequest"
    assert api.get_options()["CLIP_stop_at_last_layers"] == 1


def test_webuiapi_reads_and_enlarges_pictures(api: webuiapi.WebUIApi) -> None:
    drawn = api.txt2img(prompt="a fox", seed=7, cfg_scale=5, **SIZE)
    assert api.png_info(drawn.image).info == drawn.info["infotexts"][0]
    larger = api.extra_single_image(drawn.image, upscaler_1="Lanczos", upscaling_resize=2)
    assert larger.image.size == (128, 128)
    with pytest.raises(RuntimeError, match="upscaler_1"):
        api.extra_single_image(drawn.image, upscaler_1=webuiapi.Upscaler.ESRGAN_4x)


def test_webuiapi_follows_a_drawing_and_ends_it(server: Server, api: webuiapi.WebUIApi) -> None:
    url = f"{server.url}/sdapi/v1"
    body = {**LONG, "prompt": "a fox", "cfg_scale": 5, "force_task_id": "task(1)", "seed": -1}
    answers: list[httpx.Response] = []
    drawing = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{url}/txt2img", json=body, timeout=250))
    )
    drawing.start()
    try:
        told = eventually(
            lambda: (told := api.get_progress())["current_image"] and told, "there is a preview"
        )
        assert 0 < told["progress"] < 1
        assert told["state"]["job_count"] == 10
        assert opened(told["current_image"]).format == "PNG"
    finally:
        assert api.interrupt() == {}
        drawing.join(250)
    (answer,) = answers
    assert answer.status_code in (200, 499)
    assert answer.status_code == 499 or len(answer.json()["images"]) < 10
    api.util_wait_for_ready(check_interval=0.1)
    assert api.skip() == {}


def test_webuiapi_is_told_what_is_wrong(api: webuiapi.WebUIApi) -> None:
    with pytest.raises(RuntimeError) as raised:
        api.txt2img(prompt="a fox", cfg_scale=50, restore_faces=True, **SIZE)
    assert raised.value.args[0] == 400
    assert '"loc":["body","restore_faces"]' in raised.value.args[1]
    net = webuiapi.ControlNetUnit(image=picture(), module="openpose", model=NET)
    with pytest.raises(RuntimeError, match=r"alwayson_scripts.*ControlNet.*openpose"):
        api.txt2img(prompt="a fox", controlnet_units=[net], **SIZE)


def test_webuiapi_steers_by_a_controlnet(server: Server, api: webuiapi.WebUIApi) -> None:
    shown = shapes((64, 64))
    unit = webuiapi.ControlNetUnit(image=shown, model=NET, weight=0.5)
    drawn = api.txt2img(prompt="a fox", seed=7, cfg_scale=5, controlnet_units=[unit], **SIZE)
    asked = {"sampler": "Euler a", "seed": 7, "guidance_scale": 5, **CHEAP}
    control = {"name": NET, "image": encoded(shown), "scale": 0.5}
    for controls, same in (([control], True), ([], False)):
        body = {"text": "a fox", **asked, "controls": controls}
        answer = httpx.post(f"{server.url}/generate", json=body, timeout=120)
        other = opened(answer.json()["image_base64"])
        assert bool(apart(drawn.image, other).max() <= 2) == same


def test_silly_taverns_body_is_understood(server: Server) -> None:
    """As its server passes it on, once it has asked for the options."""
    with httpx.Client(base_url=f"{server.url}/sdapi/v1") as client:
        for path in (
            "options",
            "upscalers",
            "latent-upscale-modes",
            "sd-vae",
            "samplers",
            "schedulers",
            "sd-models",
        ):
            assert client.get(f"/{path}", headers={"Authorization": "Basic Og=="}).is_success
    body = {
        "url": server.url, "auth": "", "prompt": "a fox", "negative_prompt": "dark", "sampler_name": "Euler a",
        "scheduler": "automatic", "steps": 2, "cfg_scale": 7, "width": 64, "height": 64, "restore_faces": False,
        "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 1, "hr_additional_modules": [],
        "denoising_strength": 0.7, "hr_second_pass_steps": 0, "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True, "send_images": True,
        "do_not_save_grid": False, "do_not_save_samples": False,
    }  # fmt: skip
    assert opened(post(server, "txt2img", body)["images"][0]).size == (64, 64)


def test_open_webuis_bodies_are_understood(server: Server) -> None:
    """It names the model by writing all options back, and the drawing's by its settings."""
    title = httpx.get(f"{server.url}/sdapi/v1/sd-models").json()[0]["title"]
    options = httpx.get(f"{server.url}/sdapi/v1/options").json()
    written = httpx.post(
        f"{server.url}/sdapi/v1/options", json={**options, "sd_model_checkpoint": title}
    )
    assert written.status_code == 200
    own = {"cfg_scale": 5.0, "sampler_name": "Euler", "scheduler": "Karras"}
    body = {"prompt": "a fox", "batch_size": 2, "negative_prompt": "dark", **CHEAP, **own}
    assert len(post(server, "txt2img", body)["images"]) == 2


def test_bodies_as_kritas_plugins_send_them_are_understood(server: Server) -> None:
    """A layer with a selection, whose mask is a picture in colours, and no prompt but a number."""
    body = {
        "init_images": [f"data:image/png;base64,{encoded(picture((64, 64)).convert('RGBA'))}"],
        "mask": encoded(hole((64, 64)).convert("RGBA")), "mask_blur": 4, "inpainting_fill": 1,
        "inpaint_full_res": False, "inpaint_full_res_padding": 32, "inpainting_mask_invert": 0,
        "resize_mode": 0, "include_init_images": False,
        "prompt": "0", "negative_prompt": "", "seed": -1, "steps": 4, "cfg_scale": 7, "sampler_name": "DPM++ 2M Karras",
        "denoising_strength": 0.5, "width": 64, "height": 64, "batch_size": 1, "n_iter": 1, "styles": [],
        "restore_faces": False, "tiling": False, "alwayson_scripts": {"ControlNet": {"args": []}},
        "override_settings": {}, "script_name": "", "script_args": [],
    }  # fmt: skip
    assert opened(post(server, "img2img", body)["images"][0]).size == (64, 64)


# What fields are sent, right or wrong; what is left out is cheap.
_FIELDS = {
    "prompt": ["", "a fox", "\ud800", 3],
    "seed": [-1, -2, 2**63, "5", 1e300],
    "batch_size": [1, 0, 11, 10**30],
    "n_iter": [1, 0, -1],
    "cfg_scale": [0, 31, "x", float("nan")],
    "sampler_name": ["Euler a", "DPM fast", "", "\0"],
    "scheduler": ["automatic", "Karras", "AYS"],
    "width": [64, 65, 0, 10**30],
    "denoising_strength": [0, 1, 2, None],
    "enable_hr": [True, False, "maybe"],
    "hr_scale": [1.5, 1, 10**400],
    "hr_upscaler": ["Lanczos", "Latent", None],
    "hr_resize_x": [96, 97, -8, 10**400],
    "override_settings": [{}, {"sd_model_checkpoint": [1]}, {"a.b": 1}, {"CLIP_stop_at_last_layers": 99}, []],
    "alwayson_scripts": [{}, {"x.y": {"args": [1]}}, {"ControlNet": None}, 3],
    "init_images": [["aGk="], ["#"], [], [None], "aGk="],
    "mask": ["", "aGk=", "#", encoded(hole((64, 64)))],
    "mask_blur": [0, 4, 65, -1, 10**30, "x"],
    "inpaint_full_res": [True, False, "maybe"],
    "inpaint_full_res_padding": [0, 32, 257, -1],
    "eta": [0, 1, -1],
    "cfg": [1],
}  # fmt: skip


@pytest.mark.parametrize("path", ["txt2img", "img2img"])
def test_whatever_is_sent_is_drawn_or_refused_by_its_names(server: Server, path: str) -> None:
    begun = {"init_images": [encoded(picture((64, 64)))]} if path == "img2img" else {}
    fields = st.sampled_from(sorted(_FIELDS)).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from(_FIELDS[name]))
    )

    with httpx.Client(base_url=f"{server.url}/sdapi/v1", timeout=120) as client:

        @settings(max_examples=60, deadline=None, database=None, derandomize=True)
        @given(st.lists(fields, max_size=4))
        def ask(chosen: list[tuple[str, Any]]) -> None:
            sent = {"prompt": "a fox", **CHEAP, **begun, **dict(chosen)}
            answer = client.post(
                f"/{path}", content=json.dumps(sent), headers={"Content-Type": "application/json"}
            )
            assert answer.status_code < 500, answer.text
            if answer.status_code == 400:
                for place in answer.json()["detail"]:
                    names = [*sent, "init_images", "denoising_strength", "hr_scale", "height"]
                    assert place["loc"] == ["body"] or place["loc"][1] in names, place

        ask()
