"""The models that are loaded, behind the contract of one, so that the loop need not know how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from text2image.core.messages import Pixels, Request
from text2image.engine.models.contract import Model, Pending, Unread
from text2image.engine.sample import BatchKey, Plan, Sample


class LoadedModels:
    """Hands each call on to the model that its samples' request names; those of one key are of one model.

    The event loop plans with it. All else, and any change of which models there are, is the engine's thread's.
    """

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = dict(models)
        first = next(iter(self._models.values()))
        # They are all of one device; what else is asked of these is asked while there is but one model.
        self.info, self.max_rows, self.memory = first.info, first.max_rows, first.memory

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def add(self, name: str, model: Model) -> None:
        self._models[name] = model

    def remove(self, name: str) -> Model:
        """Lets a model go that no sample belongs to; its memory is free when nobody holds it any more."""
        return self._models.pop(name)

    def __getitem__(self, name: str) -> Model:
        return self._models[name]

    def plan(self, request: Request) -> Plan:
        plan = self._models[request.model].plan(request)
        return replace(plan, key=_owned(plan.key, request.model))

    def encode(self, samples: Sequence[Sample]) -> list[Unread]:
        return self._of(samples).encode(samples)

    def start(self, samples: Sequence[Sample]) -> None:
        self._of(samples).start(samples)
        _own(samples)

    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        return self._of(samples).predict(samples)

    def advance(
        self, samples: Sequence[Sample], predictions: Sequence[Any]
    ) -> list[Exception | None]:
        failures = self._of(samples).advance(samples, predictions)
        _own(samples)
        return failures

    def decode(self, samples: Sequence[Sample]) -> Sequence[Pixels | Pending]:
        return self._of(samples).decode(samples)

    def decode_limit(self, sample: Sample) -> int:
        return self._of([sample]).decode_limit(sample)

    def preview(self, sample: Sample) -> Pixels:
        return self._of([sample]).preview(sample)

    def release(self, sample: Sample) -> None:
        self._of([sample]).release(sample)

    def free_memory(self) -> None:
        for model in self._models.values():
            model.free_memory()

    def _of(self, samples: Sequence[Sample]) -> Model:
        return self._models[samples[0].generation.request.model]


def _own(samples: Sequence[Sample]) -> None:
    """Marks the keys that a family has set as those of its model; it does not know what that is called."""
    for sample in samples:
        sample.key = _owned(sample.key, sample.generation.request.model)


def _owned(key: BatchKey, name: str) -> BatchKey:
    return key if key.model == name else replace(key, model=name)
