"""Who steps next, and the account of what is in flight. Plain Python: no torch, no clock.

Samples of one key step together, as many as the batch limits allow. One that has started keeps its rows to its last
step, also when its key changes on the way. A row that comes free goes to the owner that was charged least for that key,
and among its own to the sample that came first; starting a sample charges its owner work × passes ÷ weight. This is
start-time fair queueing (Goyal, Vin & Cheng 1996): no owner is ever further from its share than one sample. A new owner
starts where one that always waits stands: at the work started for that key ÷ the weight of all in it.

Keys take turns by stride scheduling (Waldspurger & Weihl 1995): each is charged the time that it took ÷ the weight of
the owners in it, and the one charged least is next; a new one starts at all time ÷ the weight of all owners. An owner's
weight is spread over its keys, so it gets its share of the device however many it sends, and in such a way that none
of its pictures is slowed down more than another: large batches get more turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from threading import RLock

from text2image.engine.sample import BatchKey, Sample

# Weight of a step in the mean interval: about as many are remembered as a picture has.
WEIGHT_OF_INTERVAL = 0.05


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The bounds of a key's next pass.

    Attributes:
        start: work up to which samples start. When it falls, those that have started keep their rows.
        fit: rows that fit in memory; nothing is beyond.
    """

    start: int
    fit: int = 1 << 30


@dataclass(slots=True)
class Flow:
    """One owner's samples of one key.

    Attributes:
        charged: work that it started, in plain rows' passes, divided by weight.
        running: samples that have rows.
        waiting: the others. Dicts keep the order of admission and drop a sample in constant time.
        rows, work: what those that wait take of one pass, and of all, in plain rows.
    """

    charged: float = 0.0
    running: int = 0
    waiting: dict[Sample, None] = field(default_factory=dict)
    rows: float = 0.0
    work: float = 0.0

    def count(self, sample: Sample, sign: int) -> None:
        """Counts a sample that waits, or waits no longer."""
        self.rows += sign * sample.work
        self.work += sign * sample.work * sample.passes


@dataclass(slots=True)
class Queue:
    """The samples of one key that have steps left.

    Attributes:
        charged: seconds that the key took, divided by weight.
        slowdown: how many times longer its last step took than that of a lone sample.
        served: the charge of a flow that gets just its share.
        running: samples that have rows, in the order in which they got them, and what each was charged for a pass.
        interval: mean seconds on the clock from one step to the next; it grows from 0.
        stepped_at: when the last step ended.
    """

    charged: float
    slowdown: float = 1.0
    served: float = 0.0
    flows: dict[str, Flow] = field(default_factory=dict)
    running: dict[Sample, float] = field(default_factory=dict)
    interval: float = 0.0
    stepped_at: float | None = None

    @property
    def pictures(self) -> int:
        """Samples that have steps left."""
        return len(self.running) + sum(len(flow.waiting) for flow in self.flows.values())

    def samples(self) -> Iterator[Sample]:
        """All of them, those first that have rows."""
        yield from self.running
        for flow in self.flows.values():
            yield from flow.waiting

    @property
    def planned(self) -> float:
        """Plain rows' passes of all of them, those included that they have taken."""
        waiting = sum(flow.work for flow in self.flows.values())
        return sum(sample.work * sample.passes for sample in self.running) + waiting


@dataclass(slots=True)
class _Owner:
    weight: int
    queues: dict[BatchKey, Queue] = field(default_factory=dict)


class Scheduler:
    """The samples that have steps left. Every method may be called from any thread; `lock` keeps several together."""

    def __init__(self, lock: RLock | None = None) -> None:
        """`lock` is that of another scheduler which is asked together with this one."""
        self.lock = lock or RLock()
        self.queues: dict[BatchKey, Queue] = {}
        self._owners: dict[str, _Owner] = {}
        # Where each sample is: its own key may have changed by now.
        self._keys: dict[Sample, BatchKey] = {}
        # The charge of a key that gets just its share.
        self._time = 0.0

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, sample: Sample) -> bool:
        return sample in self._keys

    def waiting(self) -> int:
        """Samples that have no rows yet."""
        with self.lock:
            flows = (flow for queue in self.queues.values() for flow in queue.flows.values())
            return sum(len(flow.waiting) for flow in flows)

    def add(self, sample: Sample) -> None:
        """Lets a sample start as soon as there are rows for it."""
        with self.lock:
            flow = self._enter(sample)
            flow.waiting[sample] = None
            flow.count(sample, 1)

    def move(self, sample: Sample) -> None:
        """Takes note of the new key of a sample that has started; it keeps its rows."""
        with self.lock:
            self.remove(sample)
            flow = self._enter(sample)
            self._run(sample, flow, self.queues[sample.key])

    def _enter(self, sample: Sample) -> Flow:
        """The flow that a sample belongs to, where it is still to be counted."""
        key = self._keys[sample] = sample.key
        queue = self.queues.setdefault(key, Queue(self._time))
        weight = sample.generation.share.weight
        owner = self._owners.setdefault(sample.owner, _Owner(weight))
        owner.weight = weight
        owner.queues[key] = queue
        flow = queue.flows.setdefault(sample.owner, Flow())
        if not flow.waiting:
            # Who was away has saved up no claim.
            flow.charged = max(flow.charged, queue.served)
        return flow

    def select(self, limits: Callable[[BatchKey], BatchLimits]) -> list[Sample]:
        """The samples of the next forward pass: of one key, as many as its limits allow; empty if there are none."""
        with self.lock:
            if not self.queues:
                return []
            key = min(self.queues, key=lambda candidate: self.queues[candidate].charged)
            queue, bounds = self.queues[key], limits(key)
            self._time = max(self._time, queue.charged)
            chosen = fill(queue.running, bounds.fit)
            if len(chosen) < len(queue.running):
                return chosen
            rows = bounds.fit - sum(sample.rows for sample in chosen)
            work = bounds.start - sum(sample.work for sample in chosen)
            while sample := self.following(queue):
                # Nobody overtakes one that finds too few rows free: it might wait for ever.
                if chosen and (sample.rows > rows or sample.work > work):
                    break
                self.start(sample)
                chosen.append(sample)
                rows -= sample.rows
                work -= sample.work
            return chosen

    def following(self, queue: Queue) -> Sample | None:
        """The sample that gets the next rows which come free; None if none waits."""
        waiting = [flow for flow in queue.flows.values() if flow.waiting]
        if not waiting:
            return None
        flow = min(waiting, key=lambda candidate: (candidate.charged, candidate.running))
        return next(iter(flow.waiting))

    def start(self, sample: Sample) -> None:
        """Gives rows to a sample that waits."""
        with self.lock:
            queue = self.queues[self._keys[sample]]
            flow = queue.flows[sample.owner]
            del flow.waiting[sample]
            flow.count(sample, -1)
            self._run(sample, flow, queue)

    def _run(self, sample: Sample, flow: Flow, queue: Queue) -> None:
        """Gives a sample its rows, and charges its owner for all passes that it has left."""
        work = sample.work * sample.remaining
        price = sample.work / self.weight(sample.owner, queue)
        queue.served = max(queue.served, flow.charged) + work / self.weights(queue)
        queue.running[sample] = price
        flow.charged += price * sample.remaining
        flow.running += 1

    def charge(self, key: BatchKey, seconds: float, now: float, alone: float) -> None:
        """Books the seconds that a step of a key took, which ended now; a lone sample's takes `alone`."""
        with self.lock:
            queue = self.queues.get(key)
            if queue is None:
                return
            queue.slowdown = max(1.0, seconds / alone)
            queue.charged += seconds / self.weights(queue)
            self._time += seconds / self._all_weights()
            if queue.stepped_at is not None:
                interval = now - queue.stepped_at
                queue.interval += WEIGHT_OF_INTERVAL * (interval - queue.interval)
            queue.stepped_at = now

    def charge_owner(self, sample: Sample, work: float) -> None:
        """Books work, in plain rows' passes, that was done for a sample beside its own."""
        with self.lock:
            queue = self.queues[self._keys[sample]]
            flow = queue.flows[sample.owner]
            flow.charged += work / self.weight(sample.owner, queue)

    def remove(self, sample: Sample) -> None:
        """Takes out a sample that has no steps left or is no longer wanted, if it is here."""
        with self.lock:
            key = self._keys.pop(sample, None)
            if key is None:
                return
            queue = self.queues[key]
            flow = queue.flows[sample.owner]
            if sample in queue.running:
                flow.running -= 1
                # The steps that it leaves undone cost its owner nothing.
                flow.charged -= queue.running.pop(sample) * sample.remaining
            else:
                del flow.waiting[sample]
                flow.count(sample, -1)
            if not flow.running and not flow.waiting:
                del queue.flows[sample.owner]
                del self._owners[sample.owner].queues[key]
            if not self._owners[sample.owner].queues:
                del self._owners[sample.owner]
            if not queue.flows:
                del self.queues[key]

    def weight(self, owner: str, queue: Queue) -> float:
        """What an owner weighs in one of its queues: the more its pictures are slowed down there, the more."""
        own = self._owners[owner]
        return own.weight * queue.slowdown / sum(each.slowdown for each in own.queues.values())

    def weights(self, queue: Queue) -> float:
        """What all owners in one queue weigh there."""
        return sum(self.weight(owner, queue) for owner in queue.flows)

    def share(self, queue: Queue) -> float:
        """The share of the device's time that one queue gets."""
        return self.weights(queue) / self._all_weights()

    def _all_weights(self) -> float:
        return sum(owner.weight for owner in self._owners.values())


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
