"""Who steps next. Plain Python, no torch, no clock: a set of samples and four verbs: add, select, charge, remove.

Samples of one size step together, as many as the batch cap has rows for. One that has begun keeps its rows to its last
step. A row that comes free goes to the owner that was charged least in that size, and among its own to the sample that
came first; beginning a sample charges its owner rows × steps ÷ weight. This is start-time fair queueing (Goyal, Vin &
Cheng 1996): it gives the shares of deficit round robin without a quantum, so no owner is ever further from its share
than one sample. One that comes with nothing in line starts where an owner that always waits stands: at the work begun
in that size ÷ the weight of all in it.

Sizes cannot share a forward pass, so they take turns by stride scheduling (Waldspurger & Weihl 1995): each is charged
the time its step took ÷ the weight of the owners in it, and the one charged least is next; one that comes starts at the
time of all steps ÷ the weight of all owners. An owner's weight is spread
over its sizes, so it gets its share of the device however many sizes it sends, and in such a way that none of its
pictures is slowed down more than another by those that it shares the device with.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from text2image.engine.sample import Group, Sample


@dataclass(frozen=True, slots=True)
class Room:
    """Rows of a size's next step.

    Attributes:
        cap: up to which samples begin.
        most: what fits in memory. Those that have begun keep their rows when the cap falls, but not when this does.
        trial: up to which others take a single step along and wait on, so that a larger batch is measured.
    """

    cap: int
    most: int = 1 << 30
    trial: int = 0


@dataclass(slots=True)
class _Line:
    """One owner's samples of one size; `charged` is the work that it began, divided by its weight."""

    charged: float = 0.0
    running: int = 0
    # Dicts keep the order of admission and drop a sample in constant time.
    waiting: dict[Sample, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Lane:
    """The samples of one size.

    Attributes:
        charged: time that its steps took, divided by weight.
        slowdown: how many times longer its last step took than that of a lone sample.
        served: the charge of a line that gets just its share, where one that has nothing in it starts.
        running: samples that have rows, in the order in which they got them, and what each was charged.
    """

    charged: float
    slowdown: float = 1.0
    served: float = 0.0
    lines: dict[str, _Line] = field(default_factory=dict)
    running: dict[Sample, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Owner:
    """Who has samples here: its weight, and the sizes that it is spread over."""

    weight: int
    lanes: dict[Group, _Lane] = field(default_factory=dict)


class Scheduler:
    """The samples that have steps left, in groups that may step together."""

    def __init__(self) -> None:
        self._lanes: dict[Group, _Lane] = {}
        self._owners: dict[str, _Owner] = {}
        # The charge of a size that gets just its share, where one that has nothing here starts.
        self._time = 0.0

    def __len__(self) -> int:
        return sum(
            len(lane.running) + sum(len(line.waiting) for line in lane.lines.values())
            for lane in self._lanes.values()
        )

    def __contains__(self, sample: Sample) -> bool:
        lane = self._lanes.get(sample.group)
        if lane is None:
            return False
        line = lane.lines.get(sample.owner)
        return sample in lane.running or (line is not None and sample in line.waiting)

    def add(self, sample: Sample) -> None:
        """Lets a sample join from the next step on, as soon as there are rows for it."""
        lane = self._lanes.get(sample.group)
        if lane is None:
            # A group that was away has saved up no claim on the others' time, nor does coming anew give it one.
            lane = self._lanes[sample.group] = _Lane(self._time)
        weight = sample.generation.share.weight
        owner = self._owners.setdefault(sample.owner, _Owner(weight))
        owner.weight = weight
        owner.lanes[sample.group] = lane
        line = lane.lines.setdefault(sample.owner, _Line())
        if not line.waiting:
            # Nor has an owner that had nothing waiting.
            line.charged = max(line.charged, lane.served)
        line.waiting[sample] = None

    def select(self, room: Callable[[Group], Room]) -> list[Sample]:
        """The samples of the next forward pass: of one group, as many as there is room for, empty if none wait."""
        if not self._lanes:
            return []
        group = min(self._lanes, key=lambda candidate: self._lanes[candidate].charged)
        lane, rows = self._lanes[group], room(group)
        self._time = max(self._time, lane.charged)
        chosen = fill(lane.running, rows.most)
        if len(chosen) < len(lane.running):
            return chosen
        free = min(rows.cap, rows.most) - sum(sample.rows for sample in chosen)
        while waiting := [line for line in lane.lines.values() if line.waiting]:
            line = min(waiting, key=lambda candidate: (candidate.charged, candidate.running))
            sample = next(iter(line.waiting))
            # Nobody overtakes one that finds too few rows free: it might wait for ever.
            if sample.rows > free and chosen:
                break
            self._begin(sample, line, lane)
            chosen.append(sample)
            free -= sample.rows
        trial = min(rows.trial, rows.most)
        if sum(sample.rows for sample in chosen) < trial:
            lines = sorted(lane.lines.values(), key=lambda line: line.charged)
            guests = (sample for line in lines for sample in line.waiting)
            chosen = fill(itertools.chain(chosen, guests), trial)
        return chosen

    def charge(self, group: Group, seconds: float, alone: float) -> None:
        """Books the time that a step of this group took; a lone sample's takes `alone`."""
        lane = self._lanes.get(group)
        if lane is None:
            return
        lane.slowdown = max(1.0, seconds / alone)
        lane.charged += seconds / self._weights(lane)
        self._time += seconds / sum(owner.weight for owner in self._owners.values())

    def has_rows(self, sample: Sample) -> bool:
        """Whether a sample has begun and keeps its rows; a trial's guest has none."""
        lane = self._lanes.get(sample.group)
        return lane is not None and sample in lane.running

    def remove(self, sample: Sample) -> None:
        """Takes out a sample that has no steps left or is no longer wanted, if it is here."""
        if sample not in self:
            return
        lane = self._lanes[sample.group]
        line = lane.lines[sample.owner]
        if sample in lane.running:
            line.running -= 1
            # The steps that it leaves undone cost its owner nothing.
            line.charged -= lane.running.pop(sample) * sample.remaining / sample.steps
        else:
            del line.waiting[sample]
        if not line.running and not line.waiting:
            del lane.lines[sample.owner], self._owners[sample.owner].lanes[sample.group]
        if not self._owners[sample.owner].lanes:
            del self._owners[sample.owner]
        if not lane.lines:
            del self._lanes[sample.group]

    def _begin(self, sample: Sample, line: _Line, lane: _Lane) -> None:
        work = sample.rows * sample.steps
        price = work / self._weight(sample.owner, lane)
        lane.served = max(lane.served, line.charged) + work / self._weights(lane)
        lane.running[sample] = price
        line.charged += price
        line.running += 1
        del line.waiting[sample]

    def _weight(self, owner: str, lane: _Lane) -> float:
        """What an owner weighs in one size: the more its pictures are slowed down in it, the more."""
        share = self._owners[owner]
        return share.weight * lane.slowdown / sum(other.slowdown for other in share.lanes.values())

    def _weights(self, lane: _Lane) -> float:
        """What all owners in one size weigh there."""
        return sum(self._weight(owner, lane) for owner in lane.lines)


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
