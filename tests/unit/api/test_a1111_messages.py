"""What clients of A1111 send means the same here, or is refused by the name of its field."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.samples import MODEL
from text2image.api.a1111.answers import error_body
from text2image.api.a1111.messages import Asked, ImageToImage, TextToImage
from text2image.api.asgi import invalid
from text2image.core.errors import InvalidRequest, ModelNotFound
from text2image.core.formats import Encoding, FileFormat
from text2image.core.messages import (
    Control,
    Input,
    ModelInfo,
    Request,
    RequestParams,
    StreamOptions,
)
from text2image.core.validation import resolve

SERVED = replace(
    MODEL, inputs=tuple(Input), max_clip_skip=2, aliases=("sd15",), clip_skip=0, schedules=()
)
OTHER = replace(SERVED, id="anime/v3", revision="0123456789abcdef")
# As SillyTavern writes it, the credentials of its user among it.
SILLY_TAVERN = {
    "url": "http://localhost:3000",
    "auth": "user:secret",
    "prompt": "a fox",
    "negative_prompt": "dark",
    "sampler_name": "Euler a",
    "scheduler": "automatic",
    "steps": 20,
    "cfg_scale": 7,
    "width": 128,
    "height": 128,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1,
    "hr_additional_modules": [],
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
# What A1111 and clients send where they mean nothing by it.
SAID_FOR_NOTHING: dict[str, Any] = {
    "styles": [],
    "subseed": -1,
    "subseed_strength": 0.0,
    "seed_resize_from_h": 0,
    "seed_resize_from_w": -1,
    "s_churn": 0,
    "s_tmax": None,
    "s_noise": 1,
    "eta": 1.0,
    "tiling": False,
    "script_name": None,
    "script_args": [],
    "refiner_checkpoint": "",
    "refiner_switch_at": 0.8,
    "override_settings": {"sd_vae": "Automatic", "save_write_log_csv": True, "sd_unet": None},
    "alwayson_scripts": {
        "ADetailer": {"args": [False]},
        "ControlNet": {"args": [{"enabled": False, "image": "x"}]},
        "Sampler": {"args": []},
    },
}


def named(name: str | None) -> ModelInfo:
    for model in (SERVED, OTHER):
        if name in (model.id, *model.aliases) or (name is None and model is SERVED):
            return model
    raise ModelNotFound.of(name or "", [SERVED.id, OTHER.id])


def parsed(kind: type[Asked] = TextToImage, /, **fields: Any) -> RequestParams:
    begun = {"init_images": ["aGk="]} if kind is ImageToImage else {}
    return kind.model_validate({"prompt": "a fox", **begun, **fields}).params(named)


def resolved(body: Asked) -> Request:
    """What comes of a body, less its picture, which has yet to be read."""
    params = body.params(named)
    return resolve(replace(params, image=None, strength=None), named(params.model))


def refused(kind: type[Asked] = TextToImage, /, **fields: Any) -> list[str]:
    """The names that bad fields are told by, of the request itself or of what comes of it."""
    begun = {"init_images": ["aGk="]} if kind is ImageToImage else {}
    body = kind.model_validate({"prompt": "a fox", **begun, **fields})
    with pytest.raises(InvalidRequest) as raised:
        resolved(body)
    return [violation.field for violation in body.renamed(raised.value).violations]


def test_what_silly_tavern_sends_is_understood() -> None:
    body = TextToImage.model_validate(SILLY_TAVERN)
    request = resolve(body.params(named), SERVED)
    assert (request.steps, request.guidance_scale, request.clip_skip) == (20, 7, 0)
    assert (request.sampler.value, request.schedule) == ("euler ancestral", None)
    assert not {"auth", "url"} & body.told.keys()


@pytest.mark.parametrize("kind", [TextToImage, ImageToImage])
def test_what_means_nothing_changes_nothing(kind: type[Asked]) -> None:
    plain = parsed(kind, sampler_name="Euler a")
    assert parsed(kind, sampler_name="Euler a", **SAID_FOR_NOTHING) == plain


def test_numbers_are_read_as_loosely_as_a1111_reads_them() -> None:
    params = parsed(steps="20", cfg_scale="7.5", seed=5.0, width="128")
    assert (params.steps, params.guidance_scale, params.seed, params.width) == (20, 7.5, 5, 128)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"seed": -1}, {"seed": None}),
        ({"batch_size": 2, "n_iter": 3}, {"n": 6}),
        ({"sampler_index": "DDIM"}, {"sampler": "DDIM"}),
        ({"sampler_index": "DDIM", "sampler_name": "Heun"}, {"sampler": "Heun"}),
        ({"scheduler": "Karras"}, {"schedule": "Karras"}),
        ({"sampler_name": "DPM++ 2M Karras", "scheduler": "automatic"}, {"schedule": None}),
        ({"override_settings": {"sd_model_checkpoint": "anime/v3 [0123456789]"}}, {"model": "anime/v3"}),
        ({"override_settings": {"sd_model_checkpoint": "anime/v3.safetensors"}}, {"model": "anime/v3"}),
        ({"override_settings": {"sd_model_checkpoint": "sd15"}}, {"model": "embedded"}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, {"clip_skip": 2}),
        ({"clip_skip": 2}, {"clip_skip": 2}),
        ({"clip_skip": 2, "override_settings": {"CLIP_stop_at_last_layers": 1}}, {"clip_skip": 0}),
        ({"denoising_strength": 0.3}, {"strength": None, "hires_strength": None}),
        ({"enable_hr": True}, {"hires_scale": 2, "hires_strength": 0.75, "hires_steps": None}),
        (
            {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.3, "hr_second_pass_steps": 9,
             "hr_upscaler": "Lanczos", "hr_prompt": "a fox"},
            {"hires_scale": 1.5, "hires_strength": 0.3, "hires_steps": 9},
        ),
        ({"enable_hr": True, "width": 128, "hr_resize_x": 192, "hr_resize_y": 192}, {"hires_scale": 1.5}),
        ({"enable_hr": True, "hr_resize_y": 256}, {"hires_scale": 2}),
    ],
)  # fmt: skip
def test_fields_have_their_meaning(asked: dict[str, Any], expected: dict[str, Any]) -> None:
    params = parsed(**asked)
    assert {name: getattr(params, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"tiling": True}, "tiling"),
        ({"restore_faces": True}, "restore_faces"),
        ({"styles": ["anime"]}, "styles"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"seed_resize_from_w": 512}, "seed_resize_from_w"),
        ({"s_churn": 0.1}, "s_churn"),
        ({"s_noise": 1.1}, "s_noise"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"refiner_checkpoint": "sdxl"}, "refiner_checkpoint"),
        ({"infotext": "Steps: 5"}, "infotext"),
        ({"sampler_name": "DDIM", "eta": 1.0}, "eta"),
        ({"sampler_name": "Euler a", "eta": 0}, "eta"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"model": "canny"}]}}}, "alwayson_scripts.ControlNet"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {"ad_model": "face"}]}}}, "alwayson_scripts.ADetailer"),
        ({"override_settings": {"sd_vae": "vae.pt"}}, "override_settings.sd_vae"),
        ({"override_settings": {"randn_source": "NV"}}, "override_settings.randn_source"),
        ({"override_settings": {"sd_model_checkpoint": "dall-e"}}, "override_settings.sd_model_checkpoint"),
        ({"override_settings": {"sd_model_checkpoint": "sd15 [ffff]"}}, "override_settings.sd_model_checkpoint"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 3}}, "override_settings.CLIP_stop_at_last_layers"),
        ({"override_settings": {"samples_format": "gif"}}, "override_settings.samples_format"),
        ({"clip_skip": 3}, "clip_skip"),
        ({"cfg_scale": 31}, "cfg_scale"),
        ({"seed": -2}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 11}, "batch_size"),
        ({"n_iter": 11}, "n_iter"),
        ({"batch_size": 4, "n_iter": 3}, "n_iter"),
        ({"sampler_name": "DPM fast"}, "sampler_name"),
        ({"sampler_index": "DPM fast"}, "sampler_index"),
        ({"scheduler": "SGM Uniform"}, "scheduler"),
        ({"width": 100}, "width"),
        ({"prompt": " "}, "prompt"),
        ({"force_task_id": "x" * 129}, "force_task_id"),
        ({"enable_hr": True, "hr_upscaler": "Latent"}, "hr_upscaler"),
        ({"enable_hr": True, "hr_scale": 5}, "hr_scale"),
        ({"enable_hr": True, "hr_second_pass_steps": 200}, "hr_second_pass_steps"),
        ({"enable_hr": True, "denoising_strength": 2}, "denoising_strength"),
        ({"enable_hr": True, "hr_prompt": "a dog"}, "hr_prompt"),
        ({"enable_hr": True, "hr_sampler_name": "DDIM"}, "hr_sampler_name"),
        ({"enable_hr": True, "hr_resize_x": 10**400}, "hr_resize_x"),
        ({"enable_hr": True, "hr_resize_x": 192, "hr_resize_y": 256}, "hr_resize_y"),
    ],
)  # fmt: skip
def test_what_would_change_the_picture_is_refused_by_name(
    asked: dict[str, Any], field: str
) -> None:
    assert refused(**asked) == [field]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"init_images": []}, "init_images"),
        ({"init_images": ["aGk=", "aGk="]}, "init_images"),
        ({"init_images": ["#"]}, "init_images"),
        ({"mask": "#"}, "mask"),
        ({"mask_blur": 65}, "mask_blur"),
        ({"mask_blur_y": -1}, "mask_blur_y"),
        ({"inpaint_full_res_padding": 257}, "inpaint_full_res_padding"),
        ({"inpainting_fill": 2}, "inpainting_fill"),
        ({"resize_mode": 3}, "resize_mode"),
        ({"initial_noise_multiplier": 1.5}, "initial_noise_multiplier"),
        ({"latent_mask": "x"}, "latent_mask"),
    ],
)
def test_so_is_what_would_change_one_that_begins_from_another(
    asked: dict[str, Any], field: str
) -> None:
    assert refused(ImageToImage, **asked) == [field]


def test_a_picture_and_its_mask_are_taken_as_a1111_takes_them() -> None:
    plain = parsed(ImageToImage)
    assert (plain.image, plain.mask, plain.strength) == (b"hi", None, 0.75)
    assert (plain.stretched, plain.mask_inverted) == (True, False)
    masked = parsed(
        ImageToImage, mask="data:image/png;base64,aGk=", inpainting_mask_invert=1, resize_mode=1
    )
    assert (masked.mask, masked.mask_inverted, masked.stretched) == (b"hi", True, False)


def unit(**fields: Any) -> dict[str, Any]:
    """As webuiapi writes one."""
    plain = {
        "image": "aGk=", "mask": None, "module": "none", "model": "edges [0123abcd]", "weight": 1.0,
        "resize_mode": "Resize and Fill", "low_vram": False, "processor_res": 512, "threshold_a": 64,
        "threshold_b": 64, "guidance_start": 0.0, "guidance_end": 1.0, "control_mode": "Balanced",
        "pixel_perfect": False, "hr_option": "Both", "enabled": True,
    }  # fmt: skip
    return {**plain, **fields}


def scripts(*units: Any, name: str = "ControlNet") -> dict[str, Any]:
    return {"alwayson_scripts": {name: {"args": [*units]}}}


def test_units_of_controlnet_are_controls() -> None:
    off = unit(enabled=False, model="None")
    asked = unit(module="canny", weight=0.5, guidance_start=0.1, guidance_end=0.9)
    expected = Control("edges", b"hi", 0.5, 0.1, 0.9, "canny")
    assert parsed(**scripts(off, asked, unit())).controls == (expected, Control("edges", b"hi"))
    assert parsed(**scripts(asked, name="controlnet")).controls == (expected,)
    older = unit(image=None, input_image={"image": "data:image/png;base64,aGk=", "mask": None})
    assert parsed(**scripts(older)).controls == (Control("edges", b"hi"),)
    # Without an image of its own it is steered by the one that drawing begins from.
    begun = parsed(ImageToImage, init_images=["aGVsbG8="], **scripts(unit(image="")))
    assert begun.controls == (Control("edges", b"hello"),)
    assert parsed(**scripts(off)).controls is None


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "None"},
        {"model": 3},
        {"module": "openpose"},
        {"control_mode": "ControlNet is more important"},
        {"hr_option": "High res only"},
        {"weight": "much"},
        {"guidance_end": True},
        {"mask": "aGk="},
        {"image": ""},
        {"image": "#"},
        {"image": 3},
    ],
)
def test_so_is_what_a_unit_cannot_have_here(changes: dict[str, Any]) -> None:
    assert refused(**scripts(unit(**changes))) == ["alwayson_scripts.ControlNet"]
    assert refused(**scripts(unit(**changes), name="controlnet")) == ["alwayson_scripts.controlnet"]


def test_what_is_not_done_as_a1111_does_it_is_told() -> None:
    body = {"prompt": "", "init_images": ["aGk="]}
    assert not ImageToImage.model_validate(body).notes()
    exact = {"inpainting_fill": 1}
    assert not ImageToImage.model_validate({**body, "mask": "aGk=", **exact}).notes()
    assert len(ImageToImage.model_validate({**body, "mask": "aGk="}).notes()) == len(exact)


def test_files_have_the_form_that_is_asked_for() -> None:
    for settings_, expected in (
        ({}, Encoding()),
        ({"samples_format": "jpg"}, Encoding(FileFormat.JPEG, 80)),
        ({"samples_format": "webp", "jpeg_quality": 30}, Encoding(FileFormat.WEBP, 30)),
    ):
        body = TextToImage(prompt="a fox", override_settings=settings_)
        assert body.encoding == expected


def test_previews_are_for_those_who_can_ask_for_them() -> None:
    def every(**fields: Any) -> int:
        options = TextToImage(prompt="a fox", **fields).options
        assert options == StreamOptions(1, options.preview_every)
        return options.preview_every

    assert every() == 0
    assert every(force_task_id="1") == 10
    assert every(override_settings={"show_progress_every_n_steps": 3}) == 3
    assert every(force_task_id="1", override_settings={"live_previews_enable": False}) == 0
    assert every(override_settings={"show_progress_every_n_steps": 10**30}) <= 150


# What a field may be sent, whatever its type.
_JUNK: list[Any] = [
    None, True, False, 0, 1, -1, 2, 64, 128, 10**30, -(2**63), 0.5, 1.0, 1e300, float("nan"), float("inf"), "", "20",
    "Euler a", "Karras", "Latent", "None", "embedded", "sd15 [0]", "aGk=", "é\0",
    [], [None], ["aGk="], [[]], {}, {"args": [1]},
    {"a.b": {"args": [True]}}, {"sd_model_checkpoint": []}, {"sd_model_checkpoint": "x [0]", "sd_vae": {}},
    {"ControlNet": {"args": [{"model": "edges", "image": "aGk=", "weight": 10**400}, 3]}},
    {"controlnet": [[{"model": 1}]]},
    {"CLIP_stop_at_last_layers": float("inf")}, {"jpeg_quality": "80", "samples_format": 3}, {"jpeg_quality": 10**30},
]  # fmt: skip


@pytest.mark.parametrize("kind", [TextToImage, ImageToImage])
def test_whatever_is_sent_is_understood_or_refused_by_names_that_it_has(kind: type[Asked]) -> None:
    names = sorted(kind.model_fields)

    @settings(max_examples=250, deadline=None, database=None)
    @given(
        st.dictionaries(st.sampled_from([*names, "cfg", "a.b"]), st.sampled_from(_JUNK), max_size=6)
    )
    def ask(fields: dict[str, Any]) -> None:
        sent = {"prompt": "a fox", "init_images": ["aGk="], "steps": 2, **fields}
        if kind is TextToImage and "init_images" not in fields:
            del sent["init_images"]
        try:
            body = kind.model_validate_json(json.dumps(sent))
        except pydantic.ValidationError as error:
            failed = invalid(error)
        else:
            json.dumps(body.told, allow_nan=False)
            try:
                resolved(body)
                return
            except InvalidRequest as error:
                failed = body.renamed(error)
        for place in error_body(failed)["detail"]:
            assert place["loc"][0] == "body"
            assert place["loc"][1:2] == [] or place["loc"][1] in {*names, *sent, "request"}, place

    ask()


@pytest.mark.parametrize(
    ("asked", "blur", "padding"),
    [
        ({}, (4, 4), 0),
        ({"mask_blur": 7, "mask_blur_x": 1, "inpaint_full_res_padding": 32}, (7, 7), 32),
        ({"mask_blur_y": 0, "inpaint_full_res": False}, (4, 0), None),
    ],
)
def test_a_masks_edge_and_surroundings_are_a1111s(
    asked: dict[str, Any], blur: tuple[int, int], padding: int | None
) -> None:
    body = {"init_images": ["aGk="], "mask": "aGk=", **asked}
    read = ImageToImage.model_validate(body).params(named)
    assert (read.mask_blur, read.mask_padding) == (blur, padding)
    without = ImageToImage.model_validate({**body, "mask": None}).params(named)
    assert (without.mask_blur, without.mask_padding) == (None, None)
