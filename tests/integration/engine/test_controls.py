"""ControlNets as rows: each picture is that of diffusers with the same nets alone, whatever the others have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from safetensors.torch import save_file

from tests import controls, loras
from tests.doubles import make_request
from tests.init_images import (
    HEIGHT,
    SIZE,
    WIDTH,
    control_picture,
    hole,
    init_image,
    picture,
    shapes,
)
from tests.integration.engine.conftest import (
    TOLERANCE,
    array,
    draw_alone,
    harness_for,
    settings_for,
    submitted_in_turn,
)
from tests.integration.engine.pipelines import draw_with_pipeline
from text2image.core.controls import chosen
from text2image.core.loras import chosen as chosen_loras
from text2image.core.messages import (
    Control,
    GeneratedImage,
    LoraWeight,
    Quality,
    Request,
    Sampler,
)
from text2image.engine.adapters.model import adapters_of
from text2image.engine.controls.model import controls_of
from text2image.engine.models.inspection import inspect_folders
from text2image.engine.models.loading import Checkpoint, load_model
from text2image.engine.runtimes.quantize import Saving
from text2image.engine.samplers.registry import scheduler_for

Folders = Callable[[str], Path]
FAMILIES = {"sd1": "StableDiffusion", "xl": "StableDiffusionXL"}
EDGES, DEPTH = Control("edges"), Control("depth", scale=0.6)
# What steers each request, and how it is drawn besides.
ASKED: list[tuple[tuple[Control, ...], dict[str, Any]]] = [
    ((), {"sampler": Sampler.DDIM}),
    ((EDGES,), {"sampler": Sampler.EULER, "guidance_scale": 4.0}),
    ((replace(EDGES, scale=0.3),), {"sampler": Sampler.HEUN, "negative_prompt": "a blue dog"}),
    ((replace(EDGES, start=0.2, end=0.7),), {"sampler": Sampler.HEUN, "steps": 5}),
    ((EDGES, replace(DEPTH, end=0.5)), {"sampler": Sampler.DPMPP_2M, "steps": 4}),
    ((DEPTH, replace(DEPTH, scale=1.3)), {"sampler": Sampler.DDIM, "guidance_scale": 0.0}),
    ((EDGES,), {"image": init_image(), "strength": 0.7, "steps": 5}),
    ((EDGES, DEPTH), {"image": init_image(masked=True), "strength": 1.0}),
]


class Case:
    """A tiny model with a folder of ControlNets, here and in diffusers."""

    def __init__(self, kind: str, folder: Path, nets: Path) -> None:
        self.kind = kind
        self._plain = getattr(diffusers, f"{FAMILIES[kind]}Pipeline").from_pretrained(folder)
        self.nets = {
            name: controls.invent(self._plain.unet, seed=seed)
            for seed, name in enumerate(("edges", "depth"))
        }
        controls.save(self.nets["edges"], nets, "edges")
        # As people share them: one file.
        save_file(self.nets["depth"].state_dict(), nets / "depth.safetensors")
        loras.save(nets / "loras", "ink", loras.invent(self._plain, rank=4, seed=1))
        changes = {"controlnets": nets, "loras": nets / "loras", "deep_cache": 2}
        self.settings = settings_for(str(folder)).model_copy(update=changes)
        self.model: Any = load_model(self.settings, 0, lambda detail: None)
        for info in self.model.info.controls:
            self.put(Control(info.name, hash=info.hash))

    def put(self, control: Control) -> None:
        self.model.controls.put(control, self.model.controls.read(control))

    def request(self, steering: tuple[Control, ...], seed: int, **more: Any) -> Request:
        size = {"width": WIDTH, "height": HEIGHT, "steps": 3, "sampler": Sampler.DDIM}
        pictures = [
            replace(each, image=control_picture(SIZE, place)) for place, each in enumerate(steering)
        ]
        made = make_request(f"a fox {seed}", seed=seed, **{**size, **more})
        return replace(made, controls=chosen(pictures, self.model.info))

    def requests(self) -> list[Request]:
        return [self.request(each, seed, **more) for seed, (each, more) in enumerate(ASKED)]

    def reference(self, request: Request) -> np.ndarray:
        """What diffusers draws for a request, alone."""
        steering = request.controls
        nets = [self.nets[each.name] for each in steering]
        begun = request.image is not None
        masked = request.image is not None and request.image.mask is not None
        words = [FAMILIES[self.kind], "ControlNet" if nets else "", "Img2Img" if begun else ""]
        title = "".join(words).replace("Img2Img", "Inpaint" if masked else "Img2Img")
        parts = dict(self._plain.components)
        if nets:
            parts["controlnet"] = MultiControlNetModel(nets)
        if self.kind == "sd1":
            parts["requires_safety_checker"] = False
        else:
            parts["add_watermarker"] = False
        pipeline = getattr(diffusers, f"{title}Pipeline")(**parts)
        pipeline.set_progress_bar_config(disable=True)
        config = self._plain.scheduler.config
        pipeline.scheduler = scheduler_for(request.sampler, config, None)
        more: dict[str, Any] = {}
        if nets:
            more = {
                "control_image" if begun else "image": [
                    shapes(SIZE, place) for place in range(len(nets))
                ],
                "controlnet_conditioning_scale": [each.scale for each in steering],
                "control_guidance_start": [each.start for each in steering],
                "control_guidance_end": [each.end for each in steering],
            }
        if begun:
            more |= {"image": picture(), "strength": request.strength}
        if masked:
            more["mask_image"] = hole()
        return draw_with_pipeline(pipeline, request, **more)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, pipeline_folder: Folders, tmp_path_factory: Any) -> Case:
    kind = request.param
    return Case(kind, pipeline_folder(kind), tmp_path_factory.mktemp("nets"))


def drawn(harness: Any, generation: Any) -> np.ndarray:
    (image,) = harness.images(generation)
    assert isinstance(image, GeneratedImage)
    return array(image)


def off(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one - other).max())


def test_invariant_1_rows_that_none_one_or_several_nets_steer_are_the_pipelines(case: Case) -> None:
    requests = case.requests()
    assert all(not info.fault for info in case.model.info.controls)
    harness = harness_for(case.model, cap=24)
    generations = submitted_in_turn(harness, requests, every=2)
    harness.finish()
    assert harness.loop.counters["batches"] < sum(request.steps for request in requests)
    for request, generation in zip(requests, generations, strict=True):
        assert off(drawn(harness, generation), case.reference(request)) <= TOLERANCE
    # And it is the net that makes the picture, and what it is shown.
    first = requests[1]
    shown = control_picture(seed=9)
    others = [(), (replace(first.controls[0], image=shown),)]
    for other in others:
        picture_of_other = draw_alone(case.model, replace(first, controls=other))
        assert off(drawn(harness, generations[1]), picture_of_other) > 10


def test_a_row_may_have_an_adapter_too_and_neither_stays_behind(case: Case) -> None:
    pytest.importorskip("peft", reason="diffusers adds adapters by PEFT")
    (info,) = case.model.info.loras
    ink = LoraWeight("ink", 0.8, info.hash)
    case.model.adapters.put(ink, case.model.adapters.read(ink))
    taken = chosen_loras([ink], case.model.info)
    steered, plain = case.request((EDGES,), 1), case.request((), 1)
    before = [draw_alone(case.model, each) for each in (steered, plain)]
    crowd = [replace(steered, loras=taken), replace(plain, loras=taken), steered, plain]
    harness = harness_for(case.model, cap=24)
    generations = [harness.submit(each) for each in crowd]
    harness.finish()
    pictures = [drawn(harness, each) for each in generations]
    assert off(pictures[2], before[0]) <= TOLERANCE
    assert off(pictures[3], before[1]) <= TOLERANCE
    assert min(off(pictures[0], each) for each in pictures[1:]) > 10
    # The adapter's hooks are on the network that nets steer, and no longer there for what follows.
    assert off(draw_alone(case.model, steered), before[0]) <= TOLERANCE
    case.model.adapters.drop(ink)


def test_a_steered_row_is_planned_as_the_work_that_it_is(case: Case) -> None:
    plain, whole = case.request((), 1, steps=4), case.request((EDGES,), 1, steps=4)
    half = case.request((replace(EDGES, end=0.5),), 1, steps=4)
    both = case.request((EDGES, DEPTH), 1, steps=4)
    loads = [case.model.plan(each).load for each in (plain, half, whole, both)]
    assert loads == pytest.approx([1.0, 1.175, 1.35, 1.7])
    assert len({case.model.plan(each).key for each in (plain, half, whole, both)}) == 1
    harness = harness_for(case.model)
    (sample,) = harness.submit(half).samples
    told = []
    while not sample.done:
        harness.loop.tick()
        told.append(sample.load)
    # After each pass that of the next one, and none of the net's outside of its window.
    assert told[:3] == pytest.approx([1.35, 1.0, 1.0])
    harness.finish()


def test_a_fast_picture_is_steered_in_each_pass(case: Case) -> None:
    fast = case.request((EDGES,), 1, steps=4, quality=Quality.FAST, guidance_scale=1.0)
    assert off(draw_alone(case.model, fast), case.reference(fast)) <= TOLERANCE


def test_a_net_for_inpainting_sees_a_hole_where_the_mask_is(case: Case) -> None:
    whole = case.request((EDGES,), 1)
    (control,) = whole.controls
    image = control.image
    assert not isinstance(image, bytes)
    assert image is not None
    mask = bytes(WIDTH * HEIGHT // 2) + b"\xff" * (WIDTH * HEIGHT // 2)
    holed = type(image).of(WIDTH, HEIGHT, image.rgb, mask)
    request = replace(whole, controls=(replace(control, image=holed),))
    tensor = torch.from_numpy(np.array(shapes())).movedim(-1, 0)[None] / 255
    tensor[:, :, HEIGHT // 2 :] = -1.0
    pipeline = getattr(diffusers, f"{FAMILIES[case.kind]}ControlNetPipeline")(
        **case._plain.components,
        controlnet=case.nets["edges"],
        **({"requires_safety_checker": False} if case.kind == "sd1" else {}),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler_for(Sampler.DDIM, case._plain.scheduler.config, None)
    theirs = draw_with_pipeline(pipeline, request, image=tensor)
    assert off(draw_alone(case.model, request), theirs) <= TOLERANCE
    assert off(draw_alone(case.model, whole), theirs) > 10


def test_a_net_that_leaves_is_read_again(case: Case) -> None:
    request = case.request((EDGES,), 1)
    first = draw_alone(case.model, request)
    case.model.controls.drop(request.controls[0])
    assert not [key for key, _ in case.model.controls._embedded if key[0] == "edges"]
    case.put(request.controls[0])
    assert off(draw_alone(case.model, request), first) == 0


def test_nets_are_known_before_the_model_is_loaded(case: Case) -> None:
    folders = inspect_folders(case.settings)
    assert folders["controls"].look() == case.model.info.controls
    assert folders["loras"].look() == case.model.info.loras


def test_a_network_for_inpainting_is_steered_by_what_its_latents_are(
    pipeline_folder: Folders, tmp_path: Path
) -> None:
    folder = pipeline_folder("sd1-inpaint")
    plain = diffusers.StableDiffusionPipeline.from_pretrained(pipeline_folder("sd1"))
    net = controls.invent(plain.unet, seed=0)
    controls.save(net, tmp_path, "edges")
    settings = settings_for(str(folder)).model_copy(update={"controlnets": tmp_path})
    model: Any = load_model(settings, 0, lambda detail: None)
    (info,) = model.info.controls
    edges = Control("edges", control_picture(), hash=info.hash)
    model.controls.put(edges, model.controls.read(edges))
    request = replace(
        make_request("a fox", width=WIDTH, height=HEIGHT, steps=3, sampler=Sampler.EULER),
        image=init_image(masked=True),
        strength=0.7,
        controls=chosen([edges], model.info),
    )
    pipeline = diffusers.StableDiffusionControlNetInpaintPipeline.from_pretrained(
        folder, controlnet=net
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler_for(request.sampler, pipeline.scheduler.config, None)
    theirs = draw_with_pipeline(
        pipeline,
        request,
        image=picture(),
        mask_image=hole(),
        strength=0.7,
        control_image=shapes(),
        controlnet_conditioning_scale=1.0,
    )
    assert off(draw_alone(model, request), theirs) <= TOLERANCE


def test_where_batches_cannot_reach_into_the_network_there_are_no_nets_and_adapters(
    case: Case,
) -> None:
    assert [each.is_open for each in (Saving(), Saving("int8"), Saving("", "", "openvino"))] == [
        True
    ] * 3
    assert not Saving("", "model").is_open
    in_int8 = case.settings.model_copy(update={"runtime": "openvino", "quantize": "int8"})
    assert inspect_folders(in_int8) == {}
    checkpoint = Checkpoint(
        Path(), "", in_int8, torch.device("cpu"), torch.float32, print, saving=Saving("", "model")
    )
    assert controls_of(checkpoint, None, case.model._networks, 8) is None
    assert adapters_of(checkpoint, None, case.model._networks, lambda: None) is None
