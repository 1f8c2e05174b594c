"""The engine's asynchronous face: requests in, events out, and the catalogue of models.

The event loop only ever sees plain messages. It admits or refuses at once, by the backlog and the costs that the
engine's thread keeps (`worker.py`); which models that thread draws with the manager decides (`manager.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace

from text2image.core.catalogue import Entry
from text2image.core.errors import Text2ImageError, Unavailable
from text2image.core.limits import MEGA
from text2image.core.messages import (
    Completed,
    Counters,
    Event,
    Loading,
    ModelInfo,
    ModelState,
    Queued,
    Request,
    Share,
    State,
    Status,
    StreamOptions,
)
from text2image.engine.adapters.requests import BUDGETS, Budgets, RequestAdapters
from text2image.engine.adapters.store import shelves_of
from text2image.engine.catalogue import LOADING_RETRY_SECONDS, Catalogue, Slot, not_loaded
from text2image.engine.loop import Outcome
from text2image.engine.manager import ModelManager, Source, beside
from text2image.engine.memory import MemoryReading
from text2image.engine.reports import Observer
from text2image.engine.sample import Generation
from text2image.engine.streams import OutcomeStream, before
from text2image.engine.warmup import usual_request
from text2image.engine.worker import Load, Worker

DRAINING_RETRY_SECONDS = 10.0


class Engine:
    """Draws pictures for one device. All methods are called from one event loop."""

    def __init__(
        self,
        load: Load,
        *,
        source: Source | None = None,
        model_memory: int | None = None,
        budgets: Budgets = BUDGETS,
        max_batch_rows: int = 0,
        max_backlog_seconds: float = 120.0,
        memory_reserve: float = 0.0,
        observer: Observer | None = None,
        on_device_lost: Callable[[], None] | None = None,
        load_retry_seconds: float = 15.0,
    ) -> None:
        """
        Args:
            load: loads the default model in the engine's thread; it is given a function to report progress to.
            source: where other models come from, if there are any.
            model_memory: most bytes of weights that are loaded at once; None for no limit but the free memory.
            budgets: of adapters and ControlNets.
            max_batch_rows: most rows in a forward pass; 0 lets the measurements decide.
            max_backlog_seconds: requests that would wait longer are refused.
            memory_reserve: share of the free device memory that batches leave alone.
            on_device_lost: called in the engine's thread when only a new process can help.
            load_retry_seconds: pause before a default model that could not be loaded is tried again.
        """
        self._worker = Worker(
            load,
            max_batch_rows=max_batch_rows,
            max_backlog_seconds=max_backlog_seconds,
            memory_reserve=memory_reserve,
            observer=observer,
            load_retry_seconds=load_retry_seconds,
            on_state=self._set_state,
            on_outcomes=self._deliver,
            on_device_lost=on_device_lost,
        )
        self._source = source
        self._model_memory = model_memory
        self._memory_reserve = memory_reserve
        self._manager: ModelManager | None = None
        self._adapters = RequestAdapters(self._worker, budgets, memory_reserve, beside)
        # Empty until the default model is loaded, whose name is not known before.
        self._catalogue = Catalogue({}, "", model_memory)
        self._model: ModelInfo | None = None
        self._state = State.LOADING
        self._detail = "starting"
        self._streams: dict[Generation, OutcomeStream] = {}
        self._admitted = 0
        self._refused = 0
        self._changed = asyncio.Event()

    def start(self) -> None:
        """Starts loading; `status` and `watch` tell when it is done."""
        self._worker.start()

    @property
    def model(self) -> ModelInfo:
        """The default model's description.

        Raises:
            Unavailable: it is still loading, or could not be loaded.
        """
        if self._model is None:
            raise self._not_ready()
        # Its files may have changed since it was loaded first.
        return self._catalogue.find("").info or self._model

    @property
    def models(self) -> list[ModelInfo]:
        """All models whose limits are known, the default one first.

        Raises:
            Unavailable: as `model` says.
        """
        first = self.model
        known = [
            slot.info for slot in self._catalogue.slots.values() if slot.info and not slot.gone
        ]
        return [first, *(each for each in known if each.id != first.id)]

    def model_named(self, name: str | None) -> ModelInfo:
        """The description of the model of this name or alias, or of the default one.

        Raises:
            ModelNotFound: there is none of this name.
            Unavailable: it is not known yet what it can do.
        """
        if not name:
            return self.model
        self.model  # noqa: B018 - raises while the catalogue is empty
        slot = self._catalogue.find(name)
        if slot.info is None:
            raise not_loaded(slot, None)
        return slot.info

    @property
    def status(self) -> Status:
        """State, load and counters as they are now."""
        steps, backlog = self._worker.steps, self._worker.backlog
        counters = dict(steps.counters) if steps else {}
        seconds = backlog.seconds() if backlog else 0.0
        return Status(
            state=self._state,
            detail=self._detail,
            backlog_seconds=seconds,
            active=backlog.samples() + steps.decoding if backlog and steps else 0,
            counters=Counters(admitted=self._admitted, refused=self._refused, **counters),
            pace=self._pace(),
            models=self._catalogue.statuses(time.monotonic(), seconds, self._adapters.names),
            waiting=backlog.waiting() if backlog else 0,
            utilization=seconds / backlog.max_seconds if backlog else 0.0,
        )

    def _pace(self) -> float:
        """Seconds that a megapixel-step of the default model's own kind of picture takes of a busy device."""
        if self._model is None or self._worker.backlog is None:
            return 0.0
        info, (key, work) = self._model, self._usual
        return self._worker.backlog.pace(key, work) * MEGA / (info.width * info.height)

    @property
    def memory(self) -> MemoryReading | None:
        """The device's memory as it was read last, which is while the engine works."""
        return self._worker.memory.reading

    async def watch(self, min_interval: float = 0.2) -> AsyncIterator[Status]:
        """The status now and after each change, at most one every `min_interval` seconds."""
        while True:
            changed = self._changed
            yield self.status
            await asyncio.sleep(min_interval)
            await changed.wait()

    async def generate(
        self,
        request: Request,
        options: StreamOptions,
        *,
        time_limit: float,
        share: Share | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Draws a request's pictures; leaving the iteration early cancels what is left of them.

        While its model or its adapters are being loaded, it says so. A slow reader misses progress, never a picture.

        Args:
            time_limit: seconds from now in which all pictures must be finished.
            share: whose turn the work takes; nobody's in particular if left out.

        Raises:
            InvalidRequest: the model cannot do this.
            ModelNotFound: there is no such model.
            Unavailable: loading, draining, or too full to finish in time.
            DeadlineExceeded: the time limit passed, or cannot be kept.
            Internal: the request failed on its own.
        """
        deadline = time.monotonic() + time_limit
        slot = self._slot(request.model)
        async with aclosing(self._until_open(slot, deadline)) as waiting:
            async for loading in waiting:
                yield loading
        request = replace(request, model=slot.name)
        try:
            with self._catalogue.running_on(slot):
                if loading_adapters := self._adapters.waited_for(slot, request):
                    yield loading_adapters
                async with (
                    self._adapters.held(self._catalogue, slot, request, deadline),
                    aclosing(self._drawn(request, options, deadline, share)) as events,
                ):
                    async for event in events:
                        yield event
        finally:
            self._wake_manager()

    async def _drawn(
        self, request: Request, options: StreamOptions, deadline: float, share: Share | None
    ) -> AsyncGenerator[Event, None]:
        """The events of a request whose model is loaded, and stays."""
        generation, predicted = await self._admit(request, options, deadline, share)
        steps = self._worker.steps
        assert steps is not None, "the model is loaded"
        stream = self._streams[generation] = OutcomeStream()
        self._worker.put(lambda: steps.add(generation))
        try:
            yield Queued(predicted)
            while True:
                outcome = await stream.get()
                if isinstance(outcome, Text2ImageError):
                    raise outcome
                yield outcome
                if isinstance(outcome, Completed):
                    return
        finally:
            del self._streams[generation]
            if not generation.ended:
                self._worker.put(lambda: steps.cancel(generation))
            self._notify()

    async def drain(self, grace: float) -> bool:
        """Refuses new requests and waits until the admitted ones have ended, at most `grace` seconds.

        Returns whether all have ended.
        """
        self._set_state(State.DRAINING, "finishing what was admitted")
        deadline = time.monotonic() + grace
        while self._streams and time.monotonic() < deadline:
            changed = self._changed
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await changed.wait()
            except TimeoutError:
                break
        return not self._streams

    async def stop(self) -> None:
        """Ends the thread after its current tick; requests still in flight are not finished."""
        if self._manager:
            self._manager.stop()
        self._adapters.stop()
        await self._worker.stop()

    def _slot(self, name: str) -> Slot:
        try:
            if self._state is not State.READY:
                raise self._not_ready()
            return self._catalogue.find(name)
        except Text2ImageError:
            self._refused += 1
            raise

    async def _until_open(self, slot: Slot, deadline: float) -> AsyncGenerator[Loading, None]:
        """Waits until requests for a model are admitted, and tells how that is coming along."""
        if slot.is_open:
            return
        told: Loading | None = None
        try:
            with self._catalogue.waiting_for(slot):
                while not slot.is_open:
                    if self._state is not State.READY:
                        raise self._not_ready()
                    changed, now = self._changed, time.monotonic()
                    backlog = self._worker.backlog.seconds() if self._worker.backlog else 0.0
                    loading = self._catalogue.loading(slot, now, deadline, backlog)
                    self._wake_manager()
                    if told is None or loading.detail != told.detail:
                        told = loading
                        yield loading
                    else:
                        await before(deadline, changed, slot.name)
        except Text2ImageError:
            self._refused += 1
            raise
        finally:
            self._wake_manager()

    def _wake_manager(self) -> None:
        if self._manager:
            self._manager.wake()

    async def _admit(
        self, request: Request, options: StreamOptions, deadline: float, share: Share | None
    ) -> tuple[Generation, float]:
        models, backlog = self._worker.models, self._worker.backlog
        try:
            if self._state is not State.READY or models is None or backlog is None:
                raise self._not_ready()
            generation = Generation.create(
                request,
                options,
                plan=models.plan(request),
                now=time.monotonic(),
                deadline=deadline,
                share=share,
            )
            memory = self._worker.memory
            if memory.refusal(generation):
                # The thread reads the memory only while it works; the refusal goes by what is free now.
                await self._worker.run(lambda: memory.refresh(time.monotonic()))
                if refusal := memory.refusal(generation):
                    raise refusal
            predicted = backlog.admit(generation)
        except Text2ImageError:
            self._refused += 1
            raise
        self._admitted += 1
        self._notify()
        return generation, predicted

    def _not_ready(self) -> Unavailable:
        if self._state is State.DRAINING:
            return Unavailable(
                "the server is shutting down and takes no new requests",
                reason=Unavailable.DRAINING,
                retry_after=DRAINING_RETRY_SECONDS,
            )
        return Unavailable(
            f"the model is not ready: {self._detail}",
            reason=Unavailable.LOADING,
            retry_after=LOADING_RETRY_SECONDS,
        )

    def _set_state(self, state: State, detail: str) -> None:
        # A drain that began while the model was loading is not undone by what the thread reports.
        if self._state is State.DRAINING:
            return
        if state is State.READY:
            self._open()
        self._state, self._detail = state, detail
        self._notify()

    def _open(self) -> None:
        """Begins to keep the catalogue, once the default model is loaded."""
        models = self._worker.models
        assert models is not None
        self._model = info = models.info
        plan = models.plan(usual_request(info))
        self._usual = plan.key, plan.rows * plan.load * plan.passes / info.steps
        source = self._source
        entry = source.default if source else Entry(name=info.id, source=info.id)
        self._catalogue = Catalogue({info.id: entry}, info.id, self._model_memory)
        slot = self._catalogue.find("")
        slot.info, slot.state = info, ModelState.LOADED
        slot.shelves = shelves_of(models[info.id])
        if source:
            self._manager = ModelManager(
                self._catalogue,
                source,
                self._worker,
                self._memory_reserve,
                self._notify,
                self._adapters.forget,
            )
            self._manager.start()
        if slot.shelves or source:
            self._adapters.watch(self._catalogue, self._notify)

    def _notify(self) -> None:
        """Wakes those who wait for a change; each waits on the event of its time, so none is missed."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _deliver(self, outcomes: list[tuple[Generation, Outcome]]) -> None:
        for generation, outcome in outcomes:
            stream = self._streams.get(generation)
            if stream is not None:
                stream.put(outcome)
        self._notify()
