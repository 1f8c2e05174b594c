"""Pauses a diffusers pipeline wherever it calls its network, and answers the paused calls of many together.

Each picture's `__call__` runs in a greenlet of the engine's one thread: no locks, one team of OpenMP threads, and a
pause takes microseconds. Grad mode, inference mode and autocast belong to the thread, so whoever resumes a run does so
under one and the same mode each time.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from diffusers.utils import BaseOutput
from greenlet import getcurrent, greenlet

# Arguments of diffusers' networks whose first dimension, or length as a list, is the rows. Whether it is cannot be told
# by looking: with one row, a mask that all rows share has a first dimension of 1 too.
_ROWS = frozenset(
    {
        "hidden_states",
        "sample",
        "x",
        "timestep",
        "t",
        "guidance",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_mask",
        "encoder_hidden_states_mask",
        "encoder_hidden_states_t5",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
        "timestep_r",
        "attention_mask",
        "cap_feats",
        "pooled_projections",
        "text_embedding_mask",
        "text_embedding_mask_t5",
        "image_meta_size",
        "style",
        "original_size",
        "target_size",
        "crop_coords",
        "added_cond_kwargs",
    }
)
# Tensors whose digests are kept: a call shares a few, and those with a prompt and without it are asked by turns.
_MOST_DIGESTS = 8
# Those that all rows share: a pass may hold only rows to which they are the same.
_SHARED = frozenset({"image_rotary_emb", "img_ids", "txt_ids", "visual_rope_pos", "text_rope_pos"})


class NotRows(Exception):
    """A call whose arguments cannot be told apart into those of each row and those of all."""


@dataclass(slots=True, eq=False)
class Call:
    """A call that a run waits for.

    Attributes:
        name: of what is called.
        last: whether it decodes the picture, so that no more steps follow.
        rows: 1 where they cannot be told.
        signature: calls of equal ones can be answered together; None where that is not known of this one.
    """

    name: str
    function: Callable[..., Any]
    bound: inspect.BoundArguments
    last: bool = False
    rows: int = 1
    signature: Hashable = None

    def answer(self) -> Any:
        """What is called, called."""
        return self.function(*self.bound.args, **self.bound.kwargs)


class _Greenlet(greenlet):  # type: ignore[misc]  # it comes without types
    """Marks a run's own, where calls pause."""


def suspend(owner: Any, method: str, name: str, *, last: bool = False) -> None:
    """Makes runs pause where they call a method of `owner`; all others call it as before."""
    function = getattr(owner, method)
    parameters = inspect.signature(function)

    @functools.wraps(function)
    def paused(*args: Any, **kwargs: Any) -> Any:
        current = getcurrent()
        if not isinstance(current, _Greenlet) or current.parent is None:
            return function(*args, **kwargs)
        call = Call(name, function, parameters.bind(*args, **kwargs), last)
        return current.parent.switch(call)

    setattr(owner, method, paused)


def whole(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work as one single call that a run waits for: for what does not pause itself."""

    def paused() -> Any:
        parent = getcurrent().parent
        assert parent is not None
        return parent.switch(Call("whole", work, inspect.signature(work).bind()))

    return paused


@dataclass(slots=True, eq=False)
class Run:
    """Work that pauses at calls. Begun, resumed and ended by one thread.

    Attributes:
        call: what it waits for; None before it has begun and when it has ended.
        result: what the work returned.
    """

    work: Callable[[], Any]
    seed: int
    call: Call | None = None
    result: Any = None
    _greenlet: _Greenlet = field(init=False)
    _random: torch.Tensor = field(init=False)
    # Tensors that calls have shared, by identity, with their digests: most are the same object at each step.
    _digests: dict[int, tuple[torch.Tensor, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._greenlet = _Greenlet(self.work)
        self._random = torch.Generator("cpu").manual_seed(self.seed).get_state()

    def resume(self, *answer: Any) -> None:
        """Goes on until the next call, with the answer to the last one.

        What draws from torch's own generator on the CPU draws what it would alone: each run has a state of that.

        Raises:
            Exception: whatever the work raised; it has ended then.
        """
        self.call = None
        others = torch.get_rng_state()
        torch.set_rng_state(self._random)
        try:
            value = self._greenlet.switch(*answer)
        finally:
            self._random = torch.get_rng_state()
            torch.set_rng_state(others)
        if self._greenlet.dead:
            self.result = value
            self._digests.clear()
            return
        self.call = cast(Call, value)
        try:
            self.call.rows, self.call.signature = self._signature(self.call)
        except NotRows:
            self.call.signature = None

    def end(self) -> None:
        """Ends it where it is, and drops all that it holds."""
        self.call = self.result = None
        self._digests.clear()
        if not self._greenlet.dead:
            self._greenlet.throw()

    def _signature(self, call: Call) -> tuple[int, Hashable]:
        """
        Raises:
            NotRows: they cannot be told.
        """
        given = call.bound.arguments
        first = next(iter(given.values()), None)
        if not isinstance(first, torch.Tensor | list) or (
            isinstance(first, torch.Tensor) and not first.ndim
        ):
            raise NotRows
        rows = len(first)
        alike = tuple((name, self._alike(name, value, rows)) for name, value in given.items())
        return rows, (call.name, alike)

    def _alike(self, name: str, value: Any, rows: int) -> Hashable:
        """What must be the same of an argument in all calls of one pass."""
        if isinstance(value, dict) and (name in _ROWS or not value):
            return tuple((key, self._alike(name, each, rows)) for key, each in value.items())
        if isinstance(value, torch.Tensor) and name in _ROWS:
            if _is_timestep(value):
                return (), value.dtype
            if len(value) != rows:
                raise NotRows
            return tuple(value.shape[1:]), value.dtype
        if not _holds_tensors(value):
            return repr(value)
        if name in _ROWS and isinstance(value, list) and len(value) == rows:
            return tuple(self._alike(name, each[None], 1) for each in value)
        if name not in _SHARED:
            raise NotRows
        if isinstance(value, torch.Tensor):
            return self._digest(value)
        return tuple(self._alike(name, each, rows) for each in value)

    def _digest(self, tensor: torch.Tensor) -> str:
        known = self._digests.pop(id(tensor), None)
        if known is None:
            real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
            numbers = real.detach().cpu().contiguous().flatten().view(torch.uint8)
            text = f"{tensor.shape} {tensor.dtype}".encode()
            digest = hashlib.blake2b(numbers.numpy().tobytes() + text).hexdigest()
            # The tensor too, so that no other one gets its identity meanwhile.
            known = (tensor, digest)
        self._digests[id(tensor)] = known
        while len(self._digests) > _MOST_DIGESTS:
            # Some make theirs anew for each step, and they may be large.
            del self._digests[next(iter(self._digests))]
        return known[1]


def _is_timestep(value: torch.Tensor) -> bool:
    """Whether it is one number for all rows of a call."""
    return value.ndim == 0 or tuple(value.shape) == (1,)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(_holds_tensors, value))
    return isinstance(value, torch.Tensor)


def answers(calls: Sequence[Call]) -> list[Any]:
    """The answer to each: calls of equal signatures together, all others one by one. Changes no call."""
    groups: dict[Hashable, list[int]] = {}
    for place, call in enumerate(calls):
        key = (place,) if call.signature is None else call.signature
        groups.setdefault(key, []).append(place)
    found: list[Any] = [None] * len(calls)
    for places in groups.values():
        for place, answer in zip(places, _together([calls[each] for each in places]), strict=True):
            found[place] = answer
    return found


def _together(calls: Sequence[Call]) -> list[Any]:
    first = calls[0]
    if len(calls) == 1:
        return [first.answer()]
    total = sum(call.rows for call in calls)
    arguments = {
        name: _joined(name, [call.bound.arguments[name] for call in calls], calls)
        for name in first.bound.arguments
    }
    bound = inspect.BoundArguments(first.bound.signature, cast(Any, arguments))
    output = first.function(*bound.args, **bound.kwargs)
    parts, start = [], 0
    for call in calls:
        parts.append(_part(output, total, slice(start, start + call.rows)))
        start += call.rows
    return parts


def _joined(name: str, values: list[Any], calls: Sequence[Call]) -> Any:
    """One argument of all calls, each with its rows."""
    first = values[0]
    if name not in _ROWS or not _holds_tensors(first):
        return first
    if isinstance(first, dict):
        return {key: _joined(name, [each[key] for each in values], calls) for key in first}
    if isinstance(first, list):
        return [row for each in values for row in each]
    rows = [
        value.reshape(1).expand(call.rows) if _is_timestep(value) else value
        for value, call in zip(values, calls, strict=True)
    ]
    return torch.cat(rows)


def _part(output: Any, total: int, rows: slice) -> Any:
    """Some rows of what a network has put out for `total` of them.

    Raises:
        TypeError: it has put out something that has no rows.
    """
    if isinstance(output, BaseOutput):
        return type(output)(**{key: _part(each, total, rows) for key, each in output.items()})
    if isinstance(output, tuple):
        return tuple(_part(each, total, rows) for each in output)
    if output is None:
        return None
    if isinstance(output, torch.Tensor | list) and len(output) == total:
        return output[rows]
    raise TypeError(f"a network has put out a {type(output).__name__} that has not {total} rows")
