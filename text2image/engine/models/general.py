"""Any other text-to-image pipeline of diffusers, by its own `__call__`.

Each picture has a shallow copy of the pipeline, whose networks all share, and runs it in a greenlet that pauses at
each call of its network (`suspension.py`). The engine answers calls of equal signature in one pass, so that steps are
batched, fair and can be left as in the other families, and a picture is the one that the pipeline draws alone.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from torch.utils import _pytree as pytree

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.messages import ModelInfo, Pixels, Request
from text2image.engine import devices
from text2image.engine.layouts.folder import INDEX, NOT_DRAWING, parts_of, read_json
from text2image.engine.layouts.opening import open_pipeline
from text2image.engine.models.contract import DeviceLost, Unread
from text2image.engine.models.copies import copied
from text2image.engine.models.general_info import describe, guidance_of, networks_of
from text2image.engine.models.previews import Projection
from text2image.engine.models.suspension import Call, Run, answers, suspend, whole
from text2image.engine.preflight.files import Files
from text2image.engine.preflight.networks import build_networks, class_of
from text2image.engine.runtimes.choice import fitted
from text2image.engine.runtimes.offload import offload
from text2image.engine.runtimes.tiling import tile_own
from text2image.engine.sample import BatchKey, Plan, Sample

if TYPE_CHECKING:
    from text2image.engine.models.loading import Checkpoint

logger = logging.getLogger(__name__)

# Whether the scale asks for guidance, and a negative prompt is given: some pipelines take a second pass for either.
_Guided = tuple[bool, bool]
# What decodes a picture, by its name in the pipeline.
_DECODERS = ("vae", "movq", "vqvae", "vqgan")


@dataclass(slots=True, eq=False)
class State:
    """A picture on its way.

    Attributes:
        passes: calls of the network that were answered.
        answered: the last of them, with its answer.
        decoding: the call that decodes the picture, once it was answered.
        picture: None until it is drawn.
    """

    run: Run
    passes: int = 0
    answered: tuple[Call, Any] | None = None
    decoding: Call | None = None
    picture: Pixels | None = None


class General:
    """A loaded pipeline that keeps the model contract."""

    def __init__(self, pipeline: Any, info: ModelInfo, device: torch.device) -> None:
        self.info = info
        # Of what is drawn whole, a batch is one picture after the other.
        self.max_rows = devices.max_rows(device) if networks_of(pipeline) else 1
        self.memory = devices.memory_of(device)
        self._device = device
        self._pipeline = pipeline
        self._parameters = inspect.signature(pipeline.__call__).parameters
        self._guidance = guidance_of(self._parameters)
        networks = networks_of(pipeline)
        self._suspended = bool(networks)
        for name in networks:
            suspend(getattr(pipeline, name), "forward", name)
        for name in _DECODERS if networks else ():
            if hasattr(getattr(pipeline, name, None), "decode"):
                suspend(getattr(pipeline, name), "decode", name, last=True)
        # By size and how it is guided, what a picture's first pass was seen to take, and by the latter alone how many
        # passes a step is.
        self._first: dict[tuple[int, int, _Guided], tuple[BatchKey, int]] = {}
        self._passes: dict[_Guided, float] = {}

    def plan(self, request: Request) -> Plan:
        if request.negative_prompt.strip() and "negative_prompt" not in self._parameters:
            reason = "is not read by this model, which draws from one text alone; leave it out"
            raise InvalidRequest(FieldViolation("negative_prompt", reason))
        # Some draw the nearest of a few sizes.
        sizes = getattr(self._pipeline, "resolutions", None)
        if sizes and (request.width, request.height) not in sizes:
            drawn = ", ".join(f"{width}x{height}" for width, height in sizes)
            reason = f"with {request.width}x{request.height} is no size of this model, which draws {drawn}"
            raise InvalidRequest(FieldViolation("width", reason), FieldViolation("height", reason))
        if self._guidance is None and request.guidance_scale != self.info.guidance_scale:
            reason = f"is fixed in this model, which draws without one; leave it out ({self.info.guidance_scale:g})"
            raise InvalidRequest(FieldViolation("guidance_scale", reason))
        guided = _guided(request)
        key, rows = self._first.get((request.height, request.width, guided)) or (
            _key(request, "unknown"),
            2 if guided[0] and self._suspended else 1,
        )
        return Plan(key, rows, self._passes_of(request))

    def _passes_of(self, request: Request) -> int:
        """Passes of the network, as far as pictures have shown how many a step takes."""
        each = self._passes.get(_guided(request), 1.0)
        return max(1, round(each * request.steps)) if self._suspended else 1

    @torch.inference_mode()
    def encode(self, samples: Sequence[Sample]) -> list[Unread]:
        """Runs each pipeline as far as its first step; what it cuts off a prompt it does not tell."""
        texts: dict[Any, Any] = {}
        begun: list[Run] = []
        try:
            with devices.device_errors():
                for sample in samples:
                    begun.append(self._begun(sample, texts))
                    begun[-1].resume()
        except Exception:
            for run in begun:
                run.end()
            raise
        finally:
            # Copies of the pipeline hold on to it.
            texts.clear()
        for sample, run in zip(samples, begun, strict=True):
            sample.state = State(run)
        return [Unread()] * len(samples)

    def _begun(self, sample: Sample, texts: dict[Any, Any]) -> Run:
        request, seed = sample.generation.request, sample.seed
        pipeline = copied(self._pipeline, texts)

        def draw() -> Any:
            generator = torch.Generator("cpu").manual_seed(seed)
            return pipeline(**self._arguments(request), generator=generator)

        return Run(draw if self._suspended else whole(draw), seed)

    def _arguments(self, request: Request) -> dict[str, Any]:
        """What diffusers' `__call__` is given; all else is its own default."""
        given: dict[str, Any] = {
            "prompt": request.prompt,
            "num_inference_steps": request.steps,
            "height": request.height,
            "width": request.width,
            "output_type": "np",
        }
        if request.negative_prompt.strip():
            given["negative_prompt"] = request.negative_prompt
        if self._guidance is not None:
            given[self._guidance] = request.guidance_scale
        if "use_resolution_binning" in self._parameters:
            # Or it would draw another size than it was asked for.
            given["use_resolution_binning"] = False
        if "intermediate_timesteps" in self._parameters and request.steps != self.info.steps:
            # Sana Sprint's own is for its own number of steps, and for no other.
            given["intermediate_timesteps"] = None
        return given

    @torch.inference_mode()
    def start(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            request = sample.generation.request
            planned = sample.key
            self._set_next(sample)
            guided = _guided(request)
            self._first[request.height, request.width, guided] = (sample.key, sample.rows)
            # Those that join together have one key in their first pass, whatever they turn out to be.
            sample.key = planned
            sample.passes = self._passes_of(request)

    def _set_next(self, sample: Sample) -> None:
        """Sets what a sample's next pass takes, or that there is none."""
        call = sample.state.run.call
        sample.done = call is None or call.last
        sample.load = 1.0
        if call is not None and not call.last:
            sample.rows = call.rows
            sample.key = _key(sample.generation.request, call.signature or (call.name, "alone"))

    @torch.inference_mode()
    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        calls = [sample.state.run.call for sample in samples]
        with devices.device_errors():
            outputs = answers([call for call in calls if call is not None])
            devices.wait(self._device)
        # A pipeline that draws without calling its network was done when it was begun.
        rest = iter(outputs)
        return [None if call is None else next(rest) for call in calls]

    @torch.inference_mode()
    def advance(
        self, samples: Sequence[Sample], predictions: Sequence[Any]
    ) -> list[Exception | None]:
        return [
            self._advanced(sample, prediction)
            for sample, prediction in zip(samples, predictions, strict=True)
        ]

    def _advanced(self, sample: Sample, prediction: Any) -> Exception | None:
        state: State = sample.state
        try:
            if state.run.call is not None:
                state.answered = (state.run.call, prediction)
                with devices.device_errors():
                    state.run.resume(prediction)
        except DeviceLost:
            raise
        except Exception as error:
            return error
        state.passes += 1
        self._set_next(sample)
        if sample.done:
            state.answered = None
            request = sample.generation.request
            self._passes[_guided(request)] = state.passes / request.steps
        return None

    @torch.inference_mode()
    def decode(self, samples: Sequence[Sample]) -> Sequence[Pixels]:
        with devices.device_errors():
            return [self._decoded(sample.state, sample.generation.request) for sample in samples]

    def _decoded(self, state: State, request: Request) -> Pixels:
        """The sample's picture; drawn once more where it was drawn before, as the warm-up asks for to measure it."""
        if state.picture is not None:
            if state.decoding is not None:
                state.decoding.answer()
            return state.picture
        run = state.run
        # The warm-up does not take all steps: all the others are answered as its last one was.
        while run.call is not None and not run.call.last:
            run.resume(self._guessed(state, run.call))
        while run.call is not None:
            call = run.call
            answer = call.answer()
            # It is not tried again from here on.
            state.decoding = call
            run.resume(answer)
        picture = _pixels(run.result)
        if (picture.width, picture.height) != (request.width, request.height):
            raise ValueError(f"the pipeline has drawn {picture.width}x{picture.height} pixels")
        state.picture = picture
        return picture

    @staticmethod
    def _guessed(state: State, call: Call) -> Any:
        if state.answered is None or state.answered[0].signature != call.signature:
            state.answered = (call, call.answer())
        return pytree.tree_map(
            lambda each: each.clone() if isinstance(each, torch.Tensor) else each,
            state.answered[1],
        )

    def decode_limit(self, sample: Sample) -> int:
        return 1

    @torch.inference_mode()
    def preview(self, sample: Sample) -> Pixels:
        """Three channels of what the network was last given, around grey."""
        call = sample.state.run.call
        given = next(iter(call.bound.arguments.values()), None) if call else None
        latents = _latents(given, sample.generation.request)
        rgb = Projection(latents.shape[1]).draw(latents / latents.std().clamp(min=1e-3))
        height, width, _ = rgb.shape
        return Pixels(width, height, (rgb * 255).round().to(torch.uint8).numpy().tobytes())

    @torch.inference_mode()
    def release(self, sample: Sample) -> None:
        """Ends the pipeline where it is, so that nothing holds its tensors any more."""
        if isinstance(sample.state, State):
            sample.state.run.end()
            sample.state.answered = sample.state.decoding = None

    def free_memory(self) -> None:
        devices.free_memory(self._device)


def _guided(request: Request) -> _Guided:
    return request.guidance_scale > 1, bool(request.negative_prompt.strip())


def _key(request: Request, value: Any) -> BatchKey:
    return BatchKey((request.height, request.width, value), size=request.height * request.width)


def _latents(given: Any, request: Request) -> torch.Tensor:
    """(1, C, h, w) of a network's first argument: rows of latents, of frames of them, or of tokens row by row."""
    tensor = given[-1] if isinstance(given, list | torch.Tensor) else torch.zeros(3, 1, 1)
    if tensor.ndim == 2:
        height = math.isqrt(max(1, len(tensor) * request.height // request.width))
        width = len(tensor) // height
        if height * width != len(tensor):
            return torch.zeros(1, 3, 1, 1)
        tensor = tensor.T.reshape(-1, height, width)
    while tensor.ndim > 3:
        tensor = tensor[:, 0]
    return tensor[None].float().cpu()


def _pixels(result: Any) -> Pixels:
    """
    Raises:
        ValueError: it is no picture, or holds numbers that are not finite.
    """
    images = getattr(result, "images", None)
    if images is None:
        raise ValueError(f"the pipeline has drawn a {type(result).__name__} and no picture")
    picture = np.asarray(images[0], dtype=np.float32)
    if picture.ndim != 3 or picture.shape[-1] != 3:
        raise ValueError(f"the picture is {'x'.join(map(str, picture.shape))} and not RGB")
    if not np.isfinite(picture).all():
        raise ValueError("the picture holds numbers that are not finite")
    height, width, _ = picture.shape
    return Pixels(width, height, (picture * 255).round().astype(np.uint8).tobytes())


def load(checkpoint: Checkpoint) -> General:
    """Loads any pipeline from text to image, without the parts that do not draw. torch executes it.

    Raises:
        ValueError, OSError: a part of the pipeline is missing or cannot be read, or the settings do not fit it.
        OutOfMemory: it does not fit on the device.
    """
    if checkpoint.settings.runtime == "openvino":
        raise ValueError(
            f"T2I_RUNTIME=openvino, but {checkpoint.name} is drawn by its own pipeline; set T2I_RUNTIME=torch"
        )
    named = read_json(checkpoint.folder / INDEX)["_class_name"]
    kind = getattr(diffusers, named)
    known = inspect.signature(kind.__init__).parameters
    left_out = {part: None for part in NOT_DRAWING if part in known}
    with devices.device_errors():
        pipeline = open_pipeline(kind, checkpoint.folder, checkpoint.dtype, **left_out)
        pipeline = fitted(pipeline, checkpoint)
        if checkpoint.saving.offload:
            offload(pipeline, checkpoint.device, checkpoint.saving.offload)
        tile_own(pipeline, checkpoint.tiles)
    if not networks_of(pipeline):
        logger.warning("%s: a %s is drawn whole, without steps", checkpoint.name, named)
    return General(pipeline, describe(pipeline, checkpoint), checkpoint.device)


def outline(folder: Path) -> Any:
    """The pipeline with networks that have no weights, which tells what it is and draws nothing.

    Raises:
        ValueError, OSError: a part cannot be made of what its configuration says.
    """
    files = Files(folder)
    parts: dict[str, Any] = build_networks(files)
    for name, (library, part) in parts_of(files.index).items():
        if name not in parts:
            parts[name] = class_of(library, part).from_pretrained(folder / name)
    kind = getattr(diffusers, files.index["_class_name"])
    known = inspect.signature(kind.__init__).parameters
    # What a pipeline is told besides its parts, and those that it was saved without.
    told = {name: files.index[name] for name in known if name in files.index and name not in parts}
    absent = {name: None for name, value in told.items() if isinstance(value, list)}
    return kind(**(told | absent | parts))
