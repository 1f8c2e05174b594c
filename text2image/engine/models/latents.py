"""What the families of latent diffusion share: a sample's way from its seed to a decoded picture, less the network.

Their samples' states have a `trajectory`, and in `guided` the network calls, counted from 0, that take two rows: the
first without the prompt, the last with it. The other calls take the last row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from text2image.core.errors import FieldViolation, InvalidRequest
from text2image.core.guidance import EVERYWHERE, Interval
from text2image.core.messages import Pixels, Quality, Request
from text2image.core.samplers import network_calls
from text2image.engine import devices
from text2image.engine.models.contract import DeviceLost, Pending
from text2image.engine.models.init_images import Encoded, load_with
from text2image.engine.models.previews import Projection
from text2image.engine.runtimes import tiling
from text2image.engine.runtimes.networks import Networks
from text2image.engine.sample import BatchKey, Plan, Sample
from text2image.engine.samplers import update
from text2image.engine.samplers.tables import Tables
from text2image.engine.samplers.update import Trajectory

# Latent pixels to decode at once on a GPU: four pictures of 512 x 512.
_DECODE_AREA = 4 * 64 * 64


def plan(
    request: Request,
    height: int,
    width: int,
    interval: Interval | None,
    scale: float | None = None,
) -> Plan:
    """The plan of a picture of so many latent pixels; see `guided_calls`."""
    passes = network_calls(request.sampler, request.steps_drawn)
    guided = len(guided_calls(request, passes, interval, scale))
    rows = 2 if guided else 1
    load = load_with((passes + guided) / (rows * passes), request, rows, passes)
    return Plan(BatchKey((height, width), size=height * width), rows, passes, load)


def guided_calls(
    request: Request, calls: int, interval: Interval | None, scale: float | None = None
) -> range:
    """Those of so many network calls that take a second, unconditional row, counted from 0.

    Args:
        interval: where fast pictures are guided; None for a network that takes the scale as an input (LCM).
        scale: of guidance, where it is not the request's.
    """
    scale = request.guidance_scale if scale is None else scale
    if interval is None or scale <= 1:
        return range(0)
    return (interval if request.quality is Quality.FAST else EVERYWHERE).passes(calls)


def trajectory(
    sample: Sample,
    tables: Tables,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    mu: float | None = None,
    sigmas: tuple[float, ...] | None = None,
    image: Encoded | None = None,
) -> Trajectory:
    """The beginning of a sample's way from its seed, with latents of a shape (1, C, h, w); sets its `passes`.

    Latents stay in fp32 whatever the network's precision is: what half of it loses adds up over the steps.

    Args:
        mu: shift of the noise levels by the size of the picture, for schedulers that have one.
        sigmas: noise levels of the model's own.
        image: what it begins from, if it is not noise alone.

    Raises:
        InvalidRequest: the model cannot be drawn with this sampler in so many steps.
    """
    request = sample.generation.request
    try:
        first = request.steps - request.steps_drawn
        table = tables.table(
            request.sampler, request.steps, request.schedule, first=first, mu=mu, sigmas=sigmas
        )
    except ValueError as error:
        raise InvalidRequest(FieldViolation("sampler", str(error))) from error
    # On the CPU, so that a seed means the same noise on every device.
    generator = torch.Generator("cpu").manual_seed(sample.seed)
    # For a few numbers of steps the sampler makes one more than its formula says.
    sample.passes = table.calls
    if image is not None:
        start = image.start(table, shape, generator, dtype, device)
        return Trajectory(
            table, start.latents, generator, dtype, kept=start.kept, condition=start.condition
        )
    noise = torch.randn(shape, generator=generator, dtype=dtype)
    latents = devices.moved(noise.float() * table.noise_scale, device)
    return Trajectory(table, latents, generator, dtype)


def shift(config: Mapping[str, Any], tokens: int, high: float) -> float | None:
    """How far noise levels are shifted for so many tokens of a picture, where the scheduler is configured so.

    From `calculate_shift` in diffusers' `pipeline_flux`; so are the defaults.

    Args:
        high: the shift of large pictures, if the configuration names none.
    """
    if not config.get("use_dynamic_shifting"):
        return None
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", high)
    slope = (high - low) / (most - least)
    return float(tokens * slope + (low - slope * least))


def set_rows(sample: Sample) -> None:
    """Sets what the next pass takes, of which the plan knew the mean alone."""
    sample.rows = 2 if sample.state.trajectory.call in sample.state.guided else 1
    sample.load = 1.0


def start(
    samples: Sequence[Sample],
    initial: Callable[[Sample], Any],
    set_next: Callable[[Sample], None] = set_rows,
) -> None:
    """Gives each sample its initial state, all of them or none; `set_next` as in `advance`."""
    with devices.device_errors():
        states = [initial(sample) for sample in samples]
    for sample, state in zip(samples, states, strict=True):
        sample.state = state
        set_next(sample)


def rows_of(
    samples: Sequence[Sample], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Inputs (rows, C, h, w) and timesteps (rows,) of the next pass, and the place of each row's sample."""
    trajectories = [sample.state.trajectory for sample in samples]
    # A list first, since to count the repeats of a tensor on a GPU waits for it.
    owners = [place for place, sample in enumerate(samples) for _ in range(sample.rows)]
    rows = devices.placed(owners, device, torch.int64)
    inputs = update.inputs_of(trajectories).index_select(0, rows)
    return inputs, update.timesteps_of(trajectories)[owners], owners


def joined(rows: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """The rows of an input that a network takes from all samples or from none."""
    there = [row for row in rows if row is not None]
    return torch.cat(there) if there else None


def guided(
    output: torch.Tensor,
    samples: Sequence[Sample],
    rescale: float = 0.0,
    scale: float | None = None,
) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): the rows (N, C, h, w) of all samples to one for each sample.

    A sample's first row is unconditional and its last conditional; one that has a single row keeps it as it is.

    Args:
        rescale: how far guided predictions are brought back to the standard deviation of the conditional ones, from 0
            to 1 (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", 3.4).
        scale: of guidance for all samples, where it is not their requests'.
    """
    last = list(accumulate(sample.rows for sample in samples))
    first = [end - sample.rows for end, sample in zip(last, samples, strict=True)]
    places = devices.placed([*first, *(end - 1 for end in last)], output.device, torch.int64)
    unconditional, conditional = output.index_select(0, places).chunk(2)
    asked = (sample.generation.request.guidance_scale for sample in samples)
    scales = _column([each if scale is None else scale for each in asked], output)
    predictions = unconditional + scales * (conditional - unconditional)
    if not rescale:
        return predictions
    deviations = [each.std((1, 2, 3), keepdim=True) for each in (conditional, predictions)]
    # Written as diffusers' `rescale_noise_cfg` has it, so that rounding is the same too.
    rescaled = predictions * (deviations[0] / deviations[1])
    shares = _column([rescale if sample.rows == 2 else 0.0 for sample in samples], output)
    return torch.where(shares > 0, shares * rescaled + (1 - shares) * predictions, predictions)


def _column(numbers: list[float], like: torch.Tensor) -> torch.Tensor:
    return devices.placed(numbers, like.device, like.dtype).view(-1, 1, 1, 1)


def embedded_scale(
    scale: float, width: int | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    """The sinusoidal embedding (1, width) that LCM networks take the guidance scale as; None for one of no width.

    From `LatentConsistencyModelPipeline.get_guidance_scale_embedding` in diffusers.
    """
    if width is None:
        return None
    half = width // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1))
    )
    angles = (scale - 1) * 1000.0 * frequencies
    return devices.moved(torch.cat([angles.sin(), angles.cos()])[None].to(dtype), device)


def advance(
    samples: Sequence[Sample],
    predictions: Sequence[Any],
    set_next: Callable[[Sample], None] = set_rows,
) -> list[Exception | None]:
    """Takes each sample's own step, as the contract has it; `set_next` sets what its next pass takes."""
    failures = _advanced(samples, predictions)
    for sample, failure in zip(samples, failures, strict=True):
        sample.done = failure is None and sample.state.trajectory.done
        set_next(sample)
    return failures


def _advanced(samples: Sequence[Sample], predictions: Sequence[Any]) -> list[Exception | None]:
    try:
        with devices.device_errors():
            update.advance([sample.state.trajectory for sample in samples], predictions)
    except DeviceLost:
        raise
    except Exception as error:
        if len(samples) == 1:
            return [error]
        # Nothing has changed, and the noise is drawn: alone only those fail that must.
        return [
            _advanced([sample], [prediction])[0]
            for sample, prediction in zip(samples, predictions, strict=True)
        ]
    return [None] * len(samples)


def decode(
    networks: Networks,
    samples: Sequence[Sample],
    unscale: Callable[[torch.Tensor], torch.Tensor],
    projection: Projection,
    side: devices.SideStream,
) -> Sequence[Pixels | Pending]:
    """The pictures of samples, from which the projection learns how to preview others.

    Args:
        unscale: makes of latents (N, C, h, w) in fp32 what the decoder takes.
        side: where they are decoded.
    """
    with devices.device_errors():
        latents = torch.cat([sample.state.trajectory.latents for sample in samples])
        with side.work(latents):
            decoded = tiling.decode(networks.decode, unscale(latents), networks.tiles)
            # The warm-up decodes noise, from which no preview is to be learned.
            learn = all(sample.done for sample in samples) and not projection.knows_enough
            drawn = _drawn(latents, decoded, projection, learn=learn)
        return drawn if side.is_apart else [each.pixels() for each in drawn]


def scaling(config: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes latents of what such an autoencoder tells."""
    return lambda told: (told - (config.shift_factor or 0.0)) * config.scaling_factor


def unscaling(config: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes of latents what an autoencoder with a scale and a shift takes, by its configuration."""
    return lambda latents: latents / config.scaling_factor + (config.shift_factor or 0.0)


def _drawn(
    latents: torch.Tensor, decoded: torch.Tensor, projection: Projection, *, learn: bool
) -> list[_Drawn]:
    """Sends pictures (N, 3, H, W), about -1 to 1, and all else that is wanted of them, on their way to the CPU."""
    # Catches a decoder that overflows in half precision as well as latents that were broken before.
    finite = latents.isfinite().flatten(1).all(1) & decoded.isfinite().flatten(1).all(1)
    pictures = (decoded.float() / 2 + 0.5).clamp(0, 1)
    wanted = [_rgb(pictures.movedim(1, -1)), finite]
    if learn:
        wanted += [latents, projection.reduced(latents, pictures)]
    fetched = devices.Fetched(*wanted)
    return [_Drawn(fetched, place, projection) for place in range(len(latents))]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Picture number `place` of those that were decoded together, and what is to be learned from all of them."""

    fetched: devices.Fetched
    place: int
    projection: Projection

    def ready(self) -> bool:
        return self.fetched.ready()

    @torch.inference_mode()
    def pixels(self) -> Pixels:
        rgb, finite, *examples = self.fetched.tensors()
        if not finite[self.place]:
            raise ValueError("the picture holds numbers that are not finite")
        if self.place == 0 and examples and finite.all():
            self.projection.learn(*examples)
        return _pixels(rgb[self.place])


def decode_limit(device: torch.device, sample: Sample) -> int:
    """Samples like this one to decode at once."""
    # On a CPU one picture fills the cores; more at once would only keep the steps waiting.
    return 1 if device.type == "cpu" else max(1, int(_DECODE_AREA / sample.key.size))


def preview(sample: Sample, projection: Projection) -> Pixels:
    """What the sample is turning into, at latent resolution."""
    return _pixels(_rgb(projection.draw(sample.state.trajectory.predicted)))


def _rgb(pictures: torch.Tensor) -> torch.Tensor:
    """8 bit numbers of pictures (..., H, W, 3) in 0 to 1."""
    return (pictures * 255).round().to(torch.uint8).contiguous()


def _pixels(rgb: torch.Tensor) -> Pixels:
    """8 bit RGB (H, W, 3) on the CPU."""
    height, width, _ = rgb.shape
    return Pixels(width, height, rgb.numpy().tobytes())
