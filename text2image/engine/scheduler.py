"""Who steps next. Plain Python, no torch, no clock: a set of samples and four verbs: add, select, charge, remove.

Within a group samples step in the order of their admission, as many as the batch cap has rows for; one that takes its
last step leaves, and the next in line has its rows at the following step. Groups cannot share a forward pass, so they
take turns by stride scheduling (Waldspurger & Weihl 1995): each is charged the time its step took, divided by the
samples that it served, and the one charged least is next. So a picture gets its share of the device whatever its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from text2image.engine.sample import Group, Sample


class Scheduler:
    """The samples that have steps left, in groups that may step together."""

    def __init__(self) -> None:
        # Dicts keep the order of admission and drop a sample in constant time.
        self._groups: dict[Group, dict[Sample, None]] = {}
        self._charged: dict[Group, float] = {}

    def __len__(self) -> int:
        return sum(len(samples) for samples in self._groups.values())

    def __contains__(self, sample: Sample) -> bool:
        return sample in self._groups.get(sample.group, ())

    def add(self, sample: Sample) -> None:
        """Lets a sample join from the next step on."""
        if sample.group not in self._groups:
            # A group that was away has saved up no claim on the others' time.
            self._charged[sample.group] = min(self._charged.values(), default=0.0)
            self._groups[sample.group] = {}
        self._groups[sample.group][sample] = None

    def select(self, cap: Callable[[Group], int]) -> list[Sample]:
        """The samples of the next forward pass: of one group, at most `cap(group)` rows, empty if none wait."""
        if not self._groups:
            return []
        group = min(self._groups, key=lambda candidate: self._charged[candidate])
        return fill(self._groups[group], cap(group))

    def charge(self, group: Group, seconds: float, samples: int) -> None:
        """Books the time that a step of this group took for so many samples."""
        if group in self._charged:
            self._charged[group] += seconds / max(1, samples)

    def remove(self, sample: Sample) -> None:
        """Takes out a sample that has no steps left or is no longer wanted, if it is here."""
        samples = self._groups.get(sample.group)
        if samples is None or sample not in samples:
            return
        del samples[sample]
        if not samples:
            del self._groups[sample.group]
            del self._charged[sample.group]


def fill(samples: Iterable[Sample], cap: int) -> list[Sample]:
    """The samples, in order, that fit in `cap` rows; the first one always does."""
    chosen: list[Sample] = []
    free = cap
    for sample in samples:
        if sample.rows <= free or not chosen:
            chosen.append(sample)
            free -= sample.rows
        if free <= 0:
            break
    return chosen
