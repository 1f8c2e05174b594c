"""The engine's thread: it imports torch, loads the first model, takes in and lets go of others, and runs the step loop.

What is asked of it goes in through a queue of commands; what it has to tell goes out through calls into the event loop,
one per tick. With nothing to do it sleeps in the queue.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread

from text2image.core.messages import ModelInfo, State
from text2image.engine import failures
from text2image.engine.admission import Backlog
from text2image.engine.loaded import LoadedModels
from text2image.engine.loop import Outcome, StepLoop
from text2image.engine.memory import MemoryGuard
from text2image.engine.models.contract import DeviceLost, Model, OutOfMemory
from text2image.engine.reports import Observer
from text2image.engine.sample import Generation
from text2image.engine.warmup import Interleaved, Pieces, first_picture, measure, measuring

logger = logging.getLogger(__name__)

# How long `stop` waits for a tick, or a warm-up, that is under way.
STOP_SECONDS = 5.0

Report = Callable[[str], None]
Load = Callable[[Report], Model]
Command = Callable[[], None]


class Worker:
    """One thread and what it works on. Methods are for the event loop, unless they say otherwise.

    Attributes:
        models, backlog, steps, memory: None, or without anything in them, until the first model is loaded.
    """

    def __init__(
        self,
        load: Load,
        *,
        max_batch_rows: int,
        max_backlog_seconds: float,
        memory_reserve: float,
        observer: Observer | None,
        load_retry_seconds: float,
        on_state: Callable[[State, str], None],
        on_outcomes: Callable[[list[tuple[Generation, Outcome]]], None],
        on_device_lost: Callable[[], None] | None,
    ) -> None:
        """`on_state` and `on_outcomes` are called in the event loop, `on_device_lost` in the thread."""
        self._load = load
        self._max_batch_rows = max_batch_rows
        self._max_backlog_seconds = max_backlog_seconds
        self._memory_reserve = memory_reserve
        self._observer = observer
        self._load_retry_seconds = load_retry_seconds
        self._on_state = on_state
        self._on_outcomes = on_outcomes
        self._on_device_lost = on_device_lost
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outbox: list[tuple[Generation, Outcome]] = []
        self._warm_up: Interleaved | None = None
        # What the costs of each model were measured on.
        self._measured: dict[str, ModelInfo] = {}
        self.thread: Thread | None = None
        self.models: LoadedModels | None = None
        self.backlog: Backlog | None = None
        self.steps: StepLoop | None = None
        self.memory = MemoryGuard()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.thread = Thread(target=self._run, name="engine", daemon=True)
        self.thread.start()

    async def stop(self) -> None:
        """Ends the thread after its current tick."""
        self._commands.put(None)
        if self.thread is not None:
            # A thread that is still loading ends with the process.
            await asyncio.to_thread(self.thread.join, STOP_SECONDS)

    def put(self, command: Command) -> None:
        """Has the thread do something between two ticks."""
        self._commands.put(command)

    async def run(self, work: Command) -> None:
        """Lets the thread do something between two ticks, waits until it is done, and raises what it raised."""
        done: Future[None] = Future()

        def command() -> None:
            # From here on nobody can cancel it, so that its result finds it open.
            if not done.set_running_or_notify_cancel():
                return
            try:
                work()
            except DeviceLost:
                raise
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._commands.put(command)
        await asyncio.wrap_future(done)

    async def take_in(self, name: str, model: Model) -> None:
        """Has a model that was loaded elsewhere measured between ticks, and drawn with after that.

        Raises:
            OutOfMemory: not even one picture fits beside what is there.
        """
        done: Future[None] = Future()

        def begin() -> None:
            done.set_running_or_notify_cancel()
            self._warm_up = Interleaved(self._taking_in(name, model, done), time.monotonic)

        self._commands.put(begin)
        await asyncio.wrap_future(done)

    async def let_go(self, name: str, keep: Callable[[Model], bool] | None = None) -> Model | None:
        """Unloads a model that no sample belongs to. What that takes it takes of a thread beside.

        Args:
            keep: takes its weights off the device; where it says that it did, the model is returned.
        """
        models = self.models
        assert models is not None
        held: list[Model] = []
        await self.run(lambda: held.append(models.remove(name)))

        def drop() -> None:
            if keep is not None and keep(held[0]):
                return
            held.clear()
            # Of modules that hold each other, memory is free only then.
            gc.collect()

        await asyncio.to_thread(drop)
        await self.run(models.free_memory)
        return held[0] if held else None

    # The thread

    def _run(self) -> None:
        try:
            steps = self._load_until_it_works()
            if steps is not None:
                self._serve(steps)
        except Exception:
            logger.critical("the engine cannot go on in this process", exc_info=True)
            self.tell(self._on_state, State.FAILED, "the device is lost")
            if self._on_device_lost is not None:
                self._on_device_lost()

    def _load_until_it_works(self) -> StepLoop | None:
        """The loop around the first model, or None when the engine is stopped first.

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
                self.tell(self._on_state, State.FAILED, detail)
            try:
                self._commands.get(timeout=self._load_retry_seconds)
            except Empty:
                continue
            return None

    def _start_up(self) -> StepLoop:
        started = time.monotonic()
        model = self._load(self._report)
        models = LoadedModels({model.info.id: model})
        self.memory = memory = MemoryGuard(model.memory, reserve=self._memory_reserve)
        costs = measure(
            models,
            memory,
            max_rows=self._max_batch_rows,
            clock=time.monotonic,
            report=self._report,
        )
        self._measured[model.info.id] = model.info
        self.models = models
        self.backlog = Backlog(costs, self._max_backlog_seconds)
        self.steps = StepLoop(
            models,
            costs,
            self.backlog,
            clock=time.monotonic,
            emit=lambda generation, outcome: self._outbox.append((generation, outcome)),
            observer=self._observer,
            memory=memory,
        )
        logger.info("%s ready in %.1f s", model.info.id, time.monotonic() - started)
        self.tell(self._on_state, State.READY, "")
        return self.steps

    def _taking_in(self, name: str, model: Model, done: Future[None]) -> Pieces[None]:
        """Measures another model and adds it to those that are drawn with."""
        assert self.models is not None
        assert self.backlog is not None
        alone = LoadedModels({name: model})
        try:
            if self._measured.get(name) == model.info:
                # What is known of it holds, and it need only be seen that it draws.
                yield from first_picture(alone)
                self.memory.read_as(model.memory)
            else:
                memory = MemoryGuard(model.memory, reserve=self._memory_reserve)
                costs = yield from measuring(
                    alone,
                    memory,
                    max_rows=self._max_batch_rows,
                    clock=time.monotonic,
                    report=lambda detail: logger.debug("%s: %s", name, detail),
                    beside=True,
                )
                self.memory.adopt(memory)
                self.backlog.costs.adopt(costs)
                self._measured[name] = model.info
        except DeviceLost:
            raise
        except Exception as error:
            done.set_exception(error)
            return
        self.models.add(name, model)
        done.set_result(None)

    def _serve(self, steps: StepLoop) -> None:
        while True:
            # With work in flight the queue is only looked at; without, the thread sleeps in it.
            while (steps.idle and not self._warm_up) or not self._commands.empty():
                command = self._commands.get()
                if command is None:
                    steps.close()
                    return
                command()
                if steps.idle and self._outbox:
                    break
            if self._warm_up and not self._warm_up.advance(idle=steps.idle):
                self._warm_up = None
            if steps.idle and not self._outbox:
                continue
            try:
                steps.tick()
            except DeviceLost:
                raise
            except Exception as error:
                steps.fail_all(error)
            outbox, self._outbox = self._outbox, []
            self.tell(self._on_outcomes, outbox)

    def _report(self, detail: str) -> None:
        logger.info("%s", detail)
        self.tell(self._on_state, State.LOADING, detail)

    def tell(self, function: Callable[..., None], *arguments: object) -> None:
        """Calls a function in the event loop; from any thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The event loop has closed: nobody is left to be told.
            logger.debug("the event loop is closed")
