"""The models of an engine: which are loaded, which is next, and which leaves for it. Plain Python, without a clock.

Requests for a model that is not loaded wait for it. One model is loaded at a time, in the order in which they were
first asked for. If the limit leaves no room for it, the model that was used least recently leaves. A busy one is closed
first: it finishes what it has, and who asks for it now waits as for any other that is not loaded. So no model leaves
under a running sample, and none keeps another out however busy it is: models take turns, each with all that has
gathered for it meanwhile (Takagi's gated polling, which is stable whatever a change costs).

Called from the event loop alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from text2image.core.catalogue import Entry
from text2image.core.errors import ModelNotFound, Unavailable
from text2image.core.loras import digest_of
from text2image.core.messages import Loading, ModelInfo, ModelState, ModelStatus
from text2image.engine.adapters.store import Folder, Shelf

# Requests that wait for one model; so many it will hardly be worth while to have more of in memory.
MOST_WAITING = 256
# What a client is told to wait, in seconds, where nothing is known of how long loading takes.
LOADING_RETRY_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class Slot:
    """One model.

    Attributes:
        info: what it is, None until its files were looked at.
        size: bytes of its weights, in the precision that they are loaded in; 0 until that is known.
        beside: those of them that it has taken since it was loaded, for batches that need another runtime.
        folders: its adapters and its ControlNets on disk, shelves: those of the loaded model, each by the field of
            requests that names them.
        state, detail: as clients are told; why: it failed the last time.
        closed: it is to leave for another one, and takes no more requests.
        stale: its files are no longer those that it was loaded from; gone: it is no longer in the catalogue.
        crowded: the device had no room for it beside others.
        parked: it is not loaded, and its weights wait in the host's memory.
        waiting: requests that wait for it to be loaded; running: those that were admitted.
        wished: somebody was told to come back when it is loaded.
        used: when it was used last, asked: since when somebody waits, both in the order of such events.
        took: seconds that loading it took the last time; returned: those from the host's memory.
        retry_at: when a model that could not be loaded may be tried again, in seconds on the caller's clock.
        began: when its loading began, on the same clock.
    """

    entry: Entry
    info: ModelInfo | None = None
    size: int = 0
    beside: int = 0
    folders: Mapping[str, Folder] = field(default_factory=dict)
    shelves: Mapping[str, Shelf] = field(default_factory=dict)
    state: ModelState = ModelState.IDLE
    detail: str = ""
    why: str = ""
    closed: bool = False
    stale: bool = False
    gone: bool = False
    crowded: bool = False
    parked: bool = False
    waiting: int = 0
    wished: bool = False
    running: int = 0
    used: int = 0
    asked: int = 0
    took: float | None = None
    returned: float | None = None
    retry_at: float = float("-inf")
    began: float = 0.0
    _offers: tuple[ModelInfo | None, str] = field(default=(None, ""), repr=False)

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def offers(self) -> str:
        """What changes with the adapters and ControlNets that it has; told often, and found out once."""
        info = self.info
        if info is not self._offers[0]:
            self._offers = info, digest_of(info.loras, info.controls) if info else ""
        return self._offers[1]

    @property
    def is_loaded(self) -> bool:
        return self.state is ModelState.LOADED

    @property
    def is_open(self) -> bool:
        """Whether requests for it may be admitted."""
        return self.is_loaded and not (self.closed or self.stale or self.gone)

    @property
    def may_leave(self) -> bool:
        return self.is_loaded and not self.is_open and not self.running


class Catalogue:
    """The models by name, the default one first."""

    def __init__(self, entries: Mapping[str, Entry], default: str, limit: int | None) -> None:
        """`limit` is the most bytes of weights that are loaded at once; None for no limit."""
        self.default = default
        self.limit = limit
        self.slots = {name: Slot(entry) for name, entry in entries.items()}
        self._order = count(1)

    def find(self, name: str) -> Slot:
        """The model of this name or alias; the default one if it is empty.

        Raises:
            ModelNotFound: there is none; the text names those there are.
        """
        if slot := self.slots.get(name or self.default):
            return slot
        for slot in self.slots.values():
            if name in slot.entry.aliases:
                return slot
        raise ModelNotFound.of(name, self.slots)

    @contextmanager
    def waiting_for(self, slot: Slot) -> Iterator[None]:
        """Counts a request that waits until a model is open.

        Raises:
            Unavailable: too many do.
        """
        if slot.waiting >= MOST_WAITING:
            raise Unavailable(
                f"too many requests wait for {slot.name} to be loaded",
                reason=Unavailable.FULL,
                retry_after=max(1.0, slot.took or 0.0),
            )
        if not slot.waiting:
            slot.asked = next(self._order)
        slot.waiting += 1
        try:
            yield
        finally:
            slot.waiting -= 1

    @contextmanager
    def running_on(self, slot: Slot) -> Iterator[None]:
        """Counts an admitted request, while which the model stays."""
        slot.running += 1
        slot.used = next(self._order)
        try:
            yield
        finally:
            slot.running -= 1

    def update(self, entries: Mapping[str, Entry]) -> None:
        """Takes over which models there are now. Those that are loaded stay until nobody needs them any more."""
        for name, slot in list(self.slots.items()):
            entry = entries.get(name)
            if entry is None and name != self.default:
                slot.gone = True
            elif entry is not None and entry != slot.entry:
                slot.gone = False
                slot.entry, slot.size, slot.retry_at = entry, 0, float("-inf")
                slot.beside = 0
                slot.stale = slot.is_loaded
                slot.parked = False
                # What was known of it is not what a request would get now.
                slot.info = slot.info if slot.is_loaded else None
                slot.state = ModelState.LOADED if slot.is_loaded else ModelState.IDLE
            else:
                slot.gone = False
        for name, entry in entries.items():
            if name not in self.slots:
                self.slots[name] = Slot(entry)
        self._forget()

    def park(self, slot: Slot, room: int) -> bool:
        """Whether a model that leaves the device is to wait in the host's memory.

        Those that were used least recently make room for it, and are on disk alone then.

        Args:
            room: bytes that models may take there.
        """
        if slot.gone or slot.stale or not 0 < slot.size <= room:
            return False
        held = sorted(
            (each for each in self.slots.values() if each.parked), key=lambda each: each.used
        )
        taken = sum(each.size for each in held)
        for each in held:
            if taken + slot.size <= room:
                break
            each.parked = False
            taken -= each.size
        slot.parked = True
        return True

    def grew(self, slot: Slot, nbytes: int) -> None:
        """Takes note of the bytes of weights that a loaded model has taken besides its own."""
        slot.size += nbytes - slot.beside
        slot.beside = nbytes

    def left(self, slot: Slot) -> None:
        """Takes note that a model is loaded no more."""
        self.grew(slot, 0)
        slot.shelves = {}
        slot.state, slot.detail = ModelState.IDLE, ""
        slot.closed = slot.stale = False
        self._forget()

    def _forget(self) -> None:
        for name in [name for name, slot in self.slots.items() if slot.gone]:
            if not self.slots[name].is_loaded:
                del self.slots[name]

    def unknown(self, now: float) -> Slot | None:
        """A model whose files are yet to be looked at."""
        slots = self.slots.values()
        return next((each for each in slots if not each.size and each.retry_at <= now), None)

    def leaves(self) -> Slot | None:
        """A loaded model that is to be unloaded now."""
        return next((slot for slot in self.slots.values() if slot.may_leave), None)

    def wanted(self) -> Slot | None:
        """The model to load next: that which was asked for first."""
        asked = (
            slot
            for slot in self.slots.values()
            if (slot.waiting or slot.wished)
            and slot.state is ModelState.IDLE
            and slot.size
            and not slot.gone
        )
        return min(asked, key=lambda slot: slot.asked, default=None)

    def make_room(self, wanted: Slot | None, free: int | None = None) -> bool:
        """Whether there is room for a model; until there is, the one that leaves for it is closed, and no other.

        Args:
            free: bytes that the device has left; None if that is not known.
        """
        before = [slot for slot in self.slots.values() if slot.closed]
        for slot in before:
            slot.closed = False
        if wanted is None:
            return False
        held = [slot for slot in self.slots.values() if slot.is_loaded]
        fits = self.limit is None or sum(each.size for each in held) + wanted.size <= self.limit
        if not held or (fits and not wanted.crowded and (free is None or wanted.size <= free)):
            return True
        # If somebody waits for an open one, it was loaded for them, and they are about to come in.
        leaver = min(
            (slot for slot in held if slot in before or not slot.waiting),
            key=lambda slot: (slot not in before, slot.used),
            default=None,
        )
        if leaver:
            leaver.closed = True
        return False

    def fits_alone(self, slot: Slot) -> bool:
        """Whether the limit leaves room for this model at all."""
        return self.limit is None or slot.size <= self.limit

    def seconds_until_open(self, slot: Slot, now: float, backlog: float = 0.0) -> float | None:
        """Predicted seconds until a request for a model that comes now would be admitted; None if that is not known.

        Args:
            backlog: seconds until all that is admitted is done, which a model that leaves may have to finish first.
        """
        if slot.is_open:
            return 0.0
        if slot.state is ModelState.LOADING:
            return self._left(slot, now)
        ahead = [each for each in self.slots.values() if self._is_ahead(each, slot)]
        parts = [self._left(each, now) for each in (*ahead, slot)]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        held = sum(each.size for each in self.slots.values() if each.is_loaded)
        has_room = self.limit is None or held + slot.size <= self.limit
        return sum(known) + (0.0 if has_room else backlog)

    @staticmethod
    def _is_ahead(other: Slot, slot: Slot) -> bool:
        if other is slot:
            return False
        if other.state is ModelState.LOADING:
            return True
        asked = other.waiting and other.state is ModelState.IDLE
        return bool(asked and (not slot.waiting or other.asked < slot.asked))

    def _left(self, slot: Slot, now: float) -> float | None:
        """Seconds of loading that a model has before it."""
        whole = slot.took
        if slot.parked and slot.returned is not None:
            whole = slot.returned
        if whole is None:
            # As the others of its kind, by their sizes.
            rates = [
                each.took / each.size for each in self.slots.values() if each.took and each.size
            ]
            if not rates or not slot.size:
                return None
            whole = slot.size * max(rates)
        return max(0.0, whole - (now - slot.began)) if slot.state is ModelState.LOADING else whole

    def loading(self, slot: Slot, now: float, deadline: float, backlog: float) -> Loading:
        """How far a model is from being open, for a request that waits for it.

        Raises:
            ModelNotFound: it has left the catalogue.
            Unavailable: it could not be loaded, or will not be in time.
        """
        if slot.gone:
            raise ModelNotFound.of(
                slot.name, [name for name, each in self.slots.items() if not each.gone]
            )
        if slot.state is ModelState.FAILED:
            if now < slot.retry_at:
                raise not_loaded(slot, slot.retry_at - now)
            slot.state = ModelState.IDLE
        seconds = self.seconds_until_open(slot, now, backlog)
        if seconds is not None and now + seconds > deadline:
            # Whoever comes back then shall find it.
            slot.wished = True
            raise not_loaded(slot, seconds)
        return Loading(slot.detail or "waiting for its turn to be loaded", seconds)

    def statuses(
        self,
        now: float,
        backlog: float = 0.0,
        adapters_of: Callable[[Slot, bool], tuple[str, ...]] = lambda slot, ready: (),
    ) -> tuple[ModelStatus, ...]:
        """How each model is that is known, the default one first; `adapters_of` as `RequestAdapters.names`."""
        return tuple(
            ModelStatus(
                name=slot.name,
                revision=slot.info.revision,
                state=slot.state,
                detail=slot.detail,
                seconds=self.seconds_until_open(slot, now, backlog),
                offers=slot.offers,
                adapters=adapters_of(slot, True),
                waiting_adapters=adapters_of(slot, False),
            )
            for slot in self.slots.values()
            if slot.info is not None and not slot.gone
        )


def not_loaded(slot: Slot, seconds: float | None) -> Unavailable:
    """What a request for a model is told that it cannot wait for; `seconds` until it need not, None if unknown."""
    why = f": {slot.detail}" if slot.detail else ""
    return Unavailable(
        f"the model {slot.name} is not loaded{why}",
        reason=Unavailable.LOADING,
        retry_after=max(1.0, LOADING_RETRY_SECONDS if seconds is None else seconds),
    )
