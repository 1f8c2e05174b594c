"""The engine's thread and its asynchronous face.

One thread imports torch, loads the model and runs the step loop; the event loop only ever sees plain messages. Requests
go in through a queue of commands and events come out through one call into the event loop per tick; besides, the event
loop reads the backlog and the costs, to admit or refuse at once. With nothing in flight the thread sleeps in the queue.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from queue import Empty, SimpleQueue
from threading import Thread

from text2image.core.errors import Text2ImageError, Unavailable
from text2image.core.limits import MEGA
from text2image.core.messages import (
    Completed,
    Counters,
    Event,
    ModelInfo,
    Queued,
    Request,
    Share,
    State,
    Status,
    StreamOptions,
)
from text2image.engine import failures
from text2image.engine.admission import Backlog
from text2image.engine.loop import Observer, Outcome, StepLoop
from text2image.engine.memory import MemoryGuard, MemoryReading
from text2image.engine.models.contract import DeviceLost, Model, OutOfMemory
from text2image.engine.sample import Generation
from text2image.engine.streams import OutcomeStream
from text2image.engine.warmup import measure, usual_request

logger = logging.getLogger(__name__)

LOADING_RETRY_SECONDS = 5.0
DRAINING_RETRY_SECONDS = 10.0
# How long `stop` waits for a tick, or a warm-up, that is under way.
STOP_SECONDS = 5.0

Load = Callable[[Callable[[str], None]], Model]
Command = Callable[[], None]


class Engine:
    """Draws pictures for one device. All methods are called from one event loop."""

    def __init__(
        self,
        load: Load,
        *,
        max_batch_rows: int = 0,
        max_backlog_seconds: float = 120.0,
        memory_reserve: float = 0.0,
        observer: Observer | None = None,
        on_device_lost: Callable[[], None] | None = None,
        load_retry_seconds: float = 15.0,
    ) -> None:
        """
        Args:
            load: loads the model in the engine's thread; it is given a function to report progress to.
            max_batch_rows: most rows in a forward pass; 0 lets the measurements decide.
            max_backlog_seconds: requests that would wait longer are refused.
            memory_reserve: share of the free device memory that batches leave alone.
            on_device_lost: called in the engine's thread when only a new process can help.
            load_retry_seconds: pause before a model that could not be loaded is tried again.
        """
        self._load = load
        self._max_batch_rows = max_batch_rows
        self._max_backlog_seconds = max_backlog_seconds
        self._memory_reserve = memory_reserve
        self._observer = observer
        self._on_device_lost = on_device_lost
        self._load_retry_seconds = load_retry_seconds
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._state = State.LOADING
        self._detail = "starting"
        self._model: Model | None = None
        self._backlog: Backlog | None = None
        self._memory = MemoryGuard()
        self._steps: StepLoop | None = None
        self._streams: dict[Generation, OutcomeStream] = {}
        self._outbox: list[tuple[Generation, Outcome]] = []
        self._admitted = 0
        self._refused = 0
        self._changed = asyncio.Event()

    # The face towards the event loop

    def start(self) -> None:
        """Starts loading; `status` and `watch` tell when it is done."""
        self._loop = asyncio.get_running_loop()
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def model(self) -> ModelInfo:
        """The loaded model's description.

        Raises:
            Unavailable: it is still loading, or could not be loaded.
        """
        if self._model is None:
            raise self._not_ready()
        return self._model.info

    @property
    def status(self) -> Status:
        """State, load and counters as they are now."""
        steps = self._steps
        counters = dict(steps.counters) if steps else {}
        return Status(
            state=self._state,
            detail=self._detail,
            backlog_seconds=self._backlog.seconds() if self._backlog else 0.0,
            active=self._backlog.samples() + steps.decoding if self._backlog and steps else 0,
            counters=Counters(admitted=self._admitted, refused=self._refused, **counters),
            pace=self._pace(),
        )

    def _pace(self) -> float:
        """Seconds that a megapixel-step of the model's own kind of picture takes of a busy device."""
        if self._model is None or self._backlog is None:
            return 0.0
        info = self._model.info
        plan = self._model.plan(usual_request(info))
        work = plan.rows * plan.load * plan.passes / info.steps
        return self._backlog.pace(plan.key, work) * MEGA / (info.width * info.height)

    @property
    def waiting(self) -> int:
        """Samples that are admitted and have no rows yet."""
        return self._backlog.waiting() if self._backlog else 0

    @property
    def memory(self) -> MemoryReading | None:
        """The device's memory as it was read last, which is while the engine works."""
        return self._memory.reading

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

        A reader that is slow misses progress and previews, never a picture.

        Args:
            time_limit: seconds from now in which all pictures must be finished.
            share: whose turn the work takes; nobody's in particular if left out.

        Raises:
            InvalidRequest: the model cannot do this.
            Unavailable: loading, draining, or too full to finish in time.
            DeadlineExceeded: the time limit passed, or cannot be kept.
            Internal: the request failed on its own.
        """
        generation, predicted = await self._admit(request, options, time_limit, share)
        steps = self._ready_loop()
        stream = self._streams[generation] = OutcomeStream()
        self._commands.put(lambda: steps.add(generation))
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
                self._commands.put(lambda: steps.cancel(generation))
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
                await asyncio.wait_for(changed.wait(), deadline - time.monotonic())
            except TimeoutError:
                break
        return not self._streams

    async def stop(self) -> None:
        """Ends the thread after its current tick; requests still in flight are not finished."""
        self._commands.put(None)
        if self._thread is not None:
            # A thread that is still loading ends with the process.
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    async def _admit(
        self, request: Request, options: StreamOptions, time_limit: float, share: Share | None
    ) -> tuple[Generation, float]:
        try:
            if self._state is not State.READY or self._model is None or self._backlog is None:
                raise self._not_ready()
            now = time.monotonic()
            generation = Generation.create(
                request,
                options,
                plan=self._model.plan(request),
                now=now,
                deadline=now + time_limit,
                share=share,
            )
            if self._memory.refusal(generation):
                # The thread reads the memory only while it works; the refusal goes by what is free now.
                await self._in_thread(lambda: self._memory.refresh(time.monotonic()))
                if refusal := self._memory.refusal(generation):
                    raise refusal
            predicted = self._backlog.admit(generation)
        except Text2ImageError:
            self._refused += 1
            raise
        self._admitted += 1
        self._notify()
        return generation, predicted

    async def _in_thread(self, work: Command) -> None:
        """Lets the thread do something between two ticks, waits until it is done, and raises what it raised."""
        done: asyncio.Queue[Exception | None] = asyncio.Queue()

        def command() -> None:
            failure: Exception | None = None
            try:
                work()
            except DeviceLost:
                raise
            except Exception as error:
                failure = error
            self._in_event_loop(done.put_nowait, failure)

        self._commands.put(command)
        if error := await done.get():
            raise error

    def _ready_loop(self) -> StepLoop:
        if self._steps is None:
            raise self._not_ready()
        return self._steps

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
        self._state, self._detail = state, detail
        self._notify()

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

    # The thread

    def _run(self) -> None:
        try:
            steps = self._load_until_it_works()
            if steps is not None:
                self._serve(steps)
        except Exception:
            logger.critical("the engine cannot go on in this process", exc_info=True)
            self._in_event_loop(self._set_state, State.FAILED, "the device is lost")
            if self._on_device_lost is not None:
                self._on_device_lost()

    def _load_until_it_works(self) -> StepLoop | None:
        """The loaded model's loop, or None when the engine is stopped first.

        What keeps a model from loading may pass: memory that a killed predecessor still holds, a hub out of reach.
        """
        while True:
            try:
                return self._start_up()
            except DeviceLost:
                raise
            except Exception as error:
                detail = f"the model could not be loaded: {failures.why_not_loaded(error)}"
                # What has words for whoever set it up needs no traceback.
                if isinstance(error, OutOfMemory | OSError | ValueError):
                    logger.warning("%s", detail)
                else:
                    logger.exception("%s", detail)
                self._in_event_loop(self._set_state, State.FAILED, detail)
            try:
                self._commands.get(timeout=self._load_retry_seconds)
            except Empty:
                continue
            return None

    def _start_up(self) -> StepLoop:
        started = time.monotonic()
        self._model = model = self._load(self._report)
        self._memory = memory = MemoryGuard(model.memory, reserve=self._memory_reserve)
        costs = measure(
            model, memory, max_rows=self._max_batch_rows, clock=time.monotonic, report=self._report
        )
        self._backlog = Backlog(costs, self._max_backlog_seconds)
        self._steps = StepLoop(
            model,
            costs,
            self._backlog,
            clock=time.monotonic,
            emit=lambda generation, outcome: self._outbox.append((generation, outcome)),
            observer=self._observer,
            memory=memory,
        )
        logger.info("%s ready in %.1f s", model.info.id, time.monotonic() - started)
        self._in_event_loop(self._set_state, State.READY, "")
        return self._steps

    def _serve(self, steps: StepLoop) -> None:
        while True:
            # With work in flight the queue is only looked at; without, the thread sleeps in it.
            while steps.idle or not self._commands.empty():
                command = self._commands.get()
                if command is None:
                    steps.close()
                    return
                command()
                if steps.idle and self._outbox:
                    break
            try:
                steps.tick()
            except DeviceLost:
                raise
            except Exception as error:
                steps.fail_all(error)
            outbox, self._outbox = self._outbox, []
            self._in_event_loop(self._deliver, outbox)

    def _report(self, detail: str) -> None:
        logger.info("%s", detail)
        self._in_event_loop(self._set_state, State.LOADING, detail)

    def _in_event_loop(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The event loop has closed: nobody is left to be told.
            logger.debug("the event loop is closed")
