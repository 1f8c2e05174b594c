"""Copies of a diffusers pipeline, each of which draws one picture with the networks of all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from torch.utils import _pytree as pytree


def copied(pipeline: Any, texts: dict[Any, Any]) -> Any:
    """A pipeline of one picture: what its `__call__` writes to is its own, and networks are shared.

    Args:
        texts: encoded prompts, which copies that are begun together share.
    """
    own = copy.copy(pipeline)
    for name, part in vars(pipeline).items():
        if isinstance(part, ConfigMixin) and not isinstance(part, torch.nn.Module):
            # Schedulers count their steps, and guiders too.
            own.__dict__[name] = copy.deepcopy(part)
    own.set_progress_bar_config(disable=True)
    if hasattr(own, "encode_prompt"):
        own.__dict__["encode_prompt"] = _remembered(own.encode_prompt, texts)
    return own


def _remembered(encode: Callable[..., Any], texts: dict[Any, Any]) -> Callable[..., Any]:
    """Encodes each distinct prompt once. What it gives is a copy, as pipelines may write to it."""

    @wraps(encode)
    def encoded(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, sorted(kwargs.items())))
        if any(isinstance(each, torch.Tensor) for each in pytree.tree_leaves((args, kwargs))):
            return encode(*args, **kwargs)
        if key not in texts:
            texts[key] = encode(*args, **kwargs)
        return pytree.tree_map(
            lambda each: each.clone() if isinstance(each, torch.Tensor) else each, texts[key]
        )

    return encoded
