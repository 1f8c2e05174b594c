"""A sampler as a table: for each call of the network the weights that make the next latents.

Every scheduler of diffusers that draws latents is one linear recurrence: what comes next is a weighted sum over at most
the last four latents, the last four outputs of the network and one noise. So samplers, step counts and schedules of all
kinds can be updated together, and none needs a scheduler of its own.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch

from text2image.core.messages import Sampler, Schedule
from text2image.core.samplers import TITLES
from text2image.engine.samplers.ancestral import is_ancestral, use_double_precision
from text2image.engine.samplers.probing import NoNumber, Response, probe
from text2image.engine.samplers.registry import KINDS, limit_steps, scheduler_for

# How many calls a table may look back on.
REACH = 4
# Of the largest number in a product: what may be left unexplained, and what is nothing.
_RESIDUAL = 1e-6
_NOTHING = 1e-10
# Tables in memory; one of 150 steps is 50 KB.
_MOST_TABLES = 256


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What a sampler does from its first network call to its last, for one configuration and number of steps.

    Attributes:
        timesteps: the training timestep of each call.
        input_scales: the network's input is the latents times this.
        noise_scale: standard deviation of latents that are drawn from nothing.
        draws: at which calls noise is drawn, after the network has answered.
        single: whether that noise is drawn in fp32 whatever the network's precision is.
        weights: (calls, 3 REACH + 1) in float64: of the latents fed at the last calls, newest first; of the products of
            the calls before, newest first; of the outputs, newest first; of the noise. Latents fed are the product of
            the call before, unless something was done to it, as inpainting does.
        terms: for each call the same for latents that are fed as they were produced: the weights of latents, newest
            first, and of outputs, newest first, both without what is zero at the end, and of the noise.
        predicted: (calls, 2) in float64: weights of a call's latents and output in the clean latents they stand for.
        noised: (calls + 1, 2) in float64: weights of a clean picture and of noise as latents are before each call, and
            at the end.
        reach: how many latents and outputs, the newest among them, the weights go back on.
    """

    timesteps: tuple[float, ...]
    input_scales: tuple[float, ...]
    noise_scale: float
    draws: tuple[bool, ...]
    single: bool
    weights: torch.Tensor
    terms: tuple[tuple[tuple[float, ...], tuple[float, ...], float], ...]
    predicted: torch.Tensor
    noised: torch.Tensor
    reach: int

    @property
    def calls(self) -> int:
        """How often the network is asked; two-stage samplers ask it more often than they take steps.

        `network_calls`, which knows no configuration, says the same but where rounding gives diffusers one more.
        """
        return len(self.timesteps)

    def until(self, call: int) -> Table:
        """The first calls of it, so many, and no others; latents are left as the last of them makes them."""
        return replace(
            self,
            timesteps=self.timesteps[:call],
            input_scales=self.input_scales[:call],
            draws=self.draws[:call],
            weights=self.weights[:call],
            terms=self.terms[:call],
            predicted=self.predicted[:call],
            noised=self.noised[: call + 1],
        )


def table_of(
    scheduler: Any,
    steps: int,
    *,
    first: int = 0,
    eta: float = 0.0,
    mu: float | None = None,
    sigmas: tuple[float, ...] | None = None,
) -> Table:
    """The table of a scheduler of diffusers, whose timesteps are set here.

    Args:
        first: the step to begin with, as drawing on from a picture does; one made from 0 on has other weights.
        eta: what pipelines pass to schedulers that take it.
        mu: shift of the noise levels by the size of the picture, for schedulers with `use_dynamic_shifting`.
        sigmas: noise levels instead of the scheduler's own, where it takes any.

    Raises:
        ValueError: it cannot be written as a table, or not with so many steps; the text says why.
    """
    _refuse_what_bends(scheduler)
    options: dict[str, Any] = {} if mu is None else {"mu": mu}
    options |= {"num_inference_steps": steps} if sigmas is None else {"sigmas": list(sigmas)}
    begin = first * getattr(scheduler, "order", 1)
    try:
        _set_timesteps(scheduler, options)
        if begin >= len(scheduler.timesteps):
            raise ValueError(f"nothing is left from step {first} on")
        try:
            return _table(probe(scheduler, begin, eta))
        except NoNumber:
            if not is_ancestral(scheduler):
                raise
            _set_timesteps(scheduler, options)
            use_double_precision(scheduler)
            return _table(probe(scheduler, begin, eta))
    except (ValueError, IndexError, NotImplementedError) as error:
        name = type(scheduler).__name__
        raise ValueError(f"{name} cannot draw this in {steps} steps: {error}") from error


def _set_timesteps(scheduler: Any, options: dict[str, Any]) -> None:
    known = inspect.signature(scheduler.set_timesteps).parameters
    if "mu" in options and "mu" not in known:
        raise ValueError("it shifts no noise levels by the size of the picture")
    if "sigmas" in options and "sigmas" not in known:
        raise ValueError("it takes no noise levels but its own")
    scheduler.set_timesteps(**options, device="cpu")
    # Rounding gives some step counts one timestep more, -1, when they are spaced as "trailing". Schedulers that look
    # noise levels up by their timestep would find the noisiest level there.
    if not hasattr(scheduler, "sigmas"):
        scheduler.timesteps = scheduler.timesteps[scheduler.timesteps >= 0]


def _refuse_what_bends(scheduler: Any) -> None:
    name = type(scheduler).__name__
    # A configuration keeps what only other schedulers read.
    known = inspect.signature(type(scheduler).__init__).parameters
    config = {option: value for option, value in scheduler.config.items() if option in known}
    for option in ("thresholding", "clip_sample"):
        if config.get(option):
            raise ValueError(f"{name} with {option} is not linear in what it is given")
    if str(config.get("variance_type")).startswith("learned"):
        raise ValueError(f"{name} with a learned variance needs a network that predicts it")
    if hasattr(scheduler, "noise_sampler"):
        raise ValueError(f"{name} draws noise that depends on the whole way, not on one step")


def _table(response: Response) -> Table:
    calls = len(response.timesteps)
    reach, rows = 1, []
    for call in range(calls):
        row, reach = _weights(response.products, call, reach)
        rows.append(row)
    weights = torch.stack(rows)
    terms = tuple(_terms(row) for row in weights.tolist())
    return Table(
        timesteps=response.timesteps,
        input_scales=response.input_scales,
        noise_scale=response.noise_scale,
        draws=response.draws,
        single=response.single,
        weights=weights,
        terms=terms,
        predicted=response.predicted,
        noised=response.noised,
        reach=max(1, *(len(each) for latents, outputs, _ in terms for each in (latents, outputs))),
    )


def _weights(products: torch.Tensor, call: int, reach: int) -> tuple[torch.Tensor, int]:
    """One row of a table, and how far back it was looked for, `reach` at least."""
    calls = len(products)
    product = products[call]
    largest = product.abs().max().clamp_min(_NOTHING)
    fed, outputs, noises = product.reshape(3, calls)
    back = [call - j for j in range(REACH) if j <= call]
    row = torch.zeros(3 * REACH + 1, dtype=torch.float64)
    row[: len(back)] = fed[back]
    row[2 * REACH : 2 * REACH + len(back)] = outputs[back]
    row[-1] = noises[call]
    # Most schedulers take nothing else in. The others go on from a product of their own.
    seen = row.abs().sum()
    if product.abs().sum() - seen <= _NOTHING * largest:
        return row, reach
    for further in range(reach, REACH + 1):
        solved, residual = _solved(products, call, further)
        if residual <= _RESIDUAL * largest:
            return solved, further
    raise ValueError(f"it looks back on more than {REACH} calls")


def _solved(products: torch.Tensor, call: int, reach: int) -> tuple[torch.Tensor, float]:
    """The same by least squares over the impulses, and what they leave unexplained."""
    calls = len(products)
    unit = torch.eye(3 * calls, dtype=torch.float64)
    back = range(min(reach, call + 1))
    columns = {
        **{j: unit[call - j] for j in back},
        **{REACH + j: products[call - 1 - j] for j in back if j < call},
        **{2 * REACH + j: unit[calls + call - j] for j in back},
        3 * REACH: unit[2 * calls + call],
    }
    matrix = torch.stack(list(columns.values()), 1)
    # A column of zeros divided by a tiny norm would become a huge weight that explains nothing.
    norms = matrix.norm(dim=0)
    norms = torch.where(norms == 0, 1.0, norms)
    solution = torch.linalg.lstsq(matrix / norms, products[call][:, None], driver="gelsd").solution
    weights = solution[:, 0] / norms
    residual = float((matrix @ weights - products[call]).abs().max())
    weights[weights.abs() < _NOTHING * weights.abs().max()] = 0.0
    row = torch.zeros(3 * REACH + 1, dtype=torch.float64)
    row[list(columns)] = weights
    return row, residual


def _terms(row: list[float]) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """The weights of latents that are fed as they were produced: the product of the call before is what was fed."""
    fed, products, outputs = (row[part * REACH : (part + 1) * REACH] for part in range(3))
    latents = [a + b for a, b in zip(fed, products, strict=True)]
    return _shortened(latents), _shortened(outputs), row[-1]


def _shortened(weights: list[float]) -> tuple[float, ...]:
    while weights and weights[-1] == 0:
        weights = weights[:-1]
    return tuple(weights)


def offered(
    config: Mapping[str, Any], sigmas: tuple[float, ...] | None = None
) -> tuple[Sampler, ...]:
    """The samplers that a model can be drawn with, tried in two steps at most.

    Args:
        sigmas: two noise levels, if the model names its own.
    """
    return tuple(sampler for sampler in KINDS if _fits(sampler, config, sigmas))


def can_be_drawn(config: Mapping[str, Any]) -> bool:
    """Whether there is any sampler that a model can be drawn with, mostly found out with the first that is tried."""
    return any(_fits(sampler, config, None) for sampler in KINDS)


def _fits(sampler: Sampler, config: Mapping[str, Any], sigmas: tuple[float, ...] | None) -> bool:
    steps = min(2, limit_steps(sampler, config))
    # A shift by size is not known before there is one.
    mu = 1.0 if config.get("use_dynamic_shifting") else None
    try:
        scheduler = scheduler_for(sampler, config, None)
        return steps > 0 and bool(table_of(scheduler, steps, mu=mu, sigmas=sigmas))
    except ValueError:
        return False


class Tables:
    """The tables of one model, by what they are made for. Safe to use from several threads.

    Making one takes 10 to 50 ms, so they are kept, those used last.
    """

    def __init__(self, config: Mapping[str, Any], most: int = _MOST_TABLES) -> None:
        """Takes the configuration of the model's own scheduler."""
        self._config = config
        self._most = most
        self._kept: OrderedDict[tuple[Any, ...], Table] = OrderedDict()
        self._lock = Lock()

    def table(
        self,
        sampler: Sampler,
        steps: int,
        schedule: Schedule | None = None,
        *,
        first: int = 0,
        eta: float = 0.0,
        mu: float | None = None,
        sigmas: tuple[float, ...] | None = None,
    ) -> Table:
        """The table of a sampler; see `table_of`.

        Raises:
            ValueError: the model cannot be drawn with it; the text says why, and which limit there is.
        """
        key = (sampler, steps, schedule, first, eta, mu, sigmas)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        limit = limit_steps(sampler, self._config)
        if steps > limit:
            raise ValueError(f"{TITLES[sampler]} takes at most {limit} steps here, not {steps}")
        scheduler = scheduler_for(sampler, self._config, schedule)
        made = table_of(scheduler, steps, first=first, eta=eta, mu=mu, sigmas=sigmas)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return made
