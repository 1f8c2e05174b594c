"""Reads off what a scheduler computes, by feeding it an impulse at each place where it takes something in.

What a step produces is linear in the latents fed, the network's outputs and the noise drawn. So one batch of unit
impulses, each in a row of its own, has in its rows what every one of them is multiplied with.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch

# Rows of random inputs beside the impulses, and how large these inputs are: what is clipped or scaled by its own size
# shows there.
_TRIALS = 2
_TRIAL_SIZE = 50.0
# Rounding in fp32, in which some schedulers compute whatever they are given.
_ROUNDING = 1e-5
# Signal and noise of what is left after the last call.
_CLEAN = (1.0, 0.0)


@dataclass(frozen=True, slots=True)
class Response:
    """A scheduler's answer to impulses at the n calls of a run; tensors are in float64.

    Attributes:
        products: (n, 3 n): what each call makes of the latents fed at each call, of the outputs and of the noises.
        predicted: (n, 2): weights of a call's latents and output in the clean latents that they stand for.
        noised: (n + 1, 2): weights of a clean picture and of noise as latents are before each call, and at the end.
        input_scales: what the network's input is, as a multiple of the latents.
        draws: at which calls noise is drawn.
        single: whether it is drawn in fp32 whatever the network's precision is.
    """

    products: torch.Tensor
    predicted: torch.Tensor
    noised: torch.Tensor
    timesteps: tuple[float, ...]
    input_scales: tuple[float, ...]
    noise_scale: float
    draws: tuple[bool, ...]
    single: bool


class NoNumber(ValueError):
    """A scheduler computes what is no finite number."""


class _Noise:
    """Stands in for diffusers' `randn_tensor` while one scheduler is probed."""

    def __init__(self, impulses: torch.Tensor) -> None:
        self._impulses = impulses
        self.drawn: list[int] = []
        self.call = 0
        self.single = False

    def __call__(self, shape: Any, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Any:
        if self.call in self.drawn:
            raise ValueError("it draws noise twice in a step")
        self.drawn.append(self.call)
        self.single = dtype is torch.float32
        return self._impulses[self.call]


@torch.inference_mode()
def probe(scheduler: Any, first: int, eta: float) -> Response:
    """The response of a scheduler whose timesteps are set, from call number `first` on.

    Raises:
        NoNumber: it does not compute finite numbers.
        ValueError: it is not linear.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    timesteps = scheduler.timesteps[first:]
    calls = len(timesteps)
    generator = torch.Generator().manual_seed(0)
    trials = torch.randn(_TRIALS, 3 * calls, generator=generator, dtype=torch.float64)
    trials *= _TRIAL_SIZE
    rows = torch.cat([torch.eye(3 * calls, dtype=torch.float64), trials])
    latents, outputs, noises = rows.T.reshape(3, calls, -1, 1, 1, 1)
    noise = _Noise(noises)
    _with_noise(scheduler, noise)
    options = {"eta": eta} if "eta" in inspect.signature(scheduler.step).parameters else {}
    products, predicted, noised, scales = [], [], [], []
    for call, timestep in enumerate(timesteps):
        noise.call = call
        noised.append(_noised(scheduler, timestep))
        scales.append(_scale(scheduler, timestep))
        output = scheduler.step(outputs[call], timestep, latents[call], **options)
        products.append(_checked(output.prev_sample, trials))
        predicted.append(_predicted(scheduler, output, call, noised[-1]))
    return Response(
        products=torch.stack(products),
        predicted=torch.tensor(predicted, dtype=torch.float64),
        noised=torch.tensor([*noised, _CLEAN], dtype=torch.float64),
        timesteps=tuple(timesteps.tolist()),
        input_scales=tuple(scales),
        # Schedulers for flows, which begin with noise alone, do not tell it.
        noise_scale=float(getattr(scheduler, "init_noise_sigma", 1.0)),
        draws=tuple(call in noise.drawn for call in range(calls)),
        single=noise.single,
    )


def _with_noise(scheduler: Any, noise: _Noise) -> None:
    """Gives one scheduler's methods another `randn_tensor`; that of its module stays as it is for everybody else."""
    for name, function in inspect.getmembers(type(scheduler), inspect.isfunction):
        if "randn_tensor" in function.__code__.co_names:
            own: Mapping[str, Any] = {**function.__globals__, "randn_tensor": noise}
            changed = FunctionType(
                function.__code__, dict(own), name, function.__defaults__, function.__closure__
            )
            changed.__kwdefaults__ = function.__kwdefaults__
            setattr(scheduler, name, changed.__get__(scheduler))


def _checked(product: torch.Tensor, trials: torch.Tensor) -> torch.Tensor:
    """The part of a product that answers to impulses, (3 n,); the rest shows whether it may be trusted."""
    answer = product.flatten().double()
    impulses, random = answer[: -len(trials)], answer[-len(trials) :]
    if not bool(torch.isfinite(answer).all()):
        raise NoNumber("it computes what is no number")
    size = (trials.abs() @ impulses.abs()).clamp_min(1.0)
    if bool(((trials @ impulses - random).abs() > _ROUNDING * size).any()):
        raise ValueError("it is not linear in the latents, the network's outputs and the noise")
    return impulses


def _scale(scheduler: Any, timestep: torch.Tensor) -> float:
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    return float(scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), timestep))


def _noised(scheduler: Any, timestep: torch.Tensor) -> tuple[float, float]:
    """The shares of picture and noise in latents at a timestep."""
    picture = torch.tensor([1.0, 0.0], dtype=torch.float64)
    at = timestep[None]
    if hasattr(scheduler, "add_noise"):
        signal, noise = scheduler.add_noise(picture, 1 - picture, at).tolist()
    else:
        signal, noise = scheduler.scale_noise(picture, at, 1 - picture).tolist()
    return signal, noise


def _predicted(
    scheduler: Any, output: Any, call: int, noised: tuple[float, float]
) -> tuple[float, float]:
    """The weights of latents and output in the clean latents, as the scheduler tells them or else as they are defined.

    Where it does not tell: with latents of signal a and noise s, from the definitions of the predictions (Salimans &
    Ho 2022 for v, which is defined for a^2 + s^2 = 1; Liu et al. 2022 for flows).
    """
    for name in ("pred_original_sample", "denoised"):
        told = getattr(output, name, None)
        if told is not None:
            calls = (len(told) - _TRIALS) // 3
            weights = told.flatten().double()
            return float(weights[call]), float(weights[calls + call])
    signal, noise = noised
    size = (signal**2 + noise**2) ** 0.5
    match scheduler.config.get("prediction_type", "flow_prediction"):
        case "epsilon":
            return 1 / signal, -noise / signal
        case "sample":
            return 0.0, 1.0
        case "v_prediction":
            return signal / size**2, -noise / size
        case "flow_prediction":
            return 1.0, -noise
        case other:
            raise ValueError(f"it does not say what a network means that predicts {other!r}")
