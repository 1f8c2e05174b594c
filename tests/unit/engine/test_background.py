"""The background class: it has what interactive requests leave, and delays none of them by more than one step."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import drivers
from tests.doubles import TimedModel, make_request
from tests.harness import Harness
from text2image.core.errors import DeadlineExceeded, Unavailable
from text2image.core.messages import Completed
from text2image.engine.admission import BACKGROUND_BATCHES
from text2image.engine.background import CREDIT_SHARE, MOST_CREDIT, MOST_GROWTH, SHORT_STEP
from text2image.engine.sample import Generation, Sample

SIDES = (64, 128)
# Ticks, or a request that arrives: whether in the background, its side, its steps, and whether it takes two rows.
ARRIVALS = st.lists(
    st.one_of(
        st.integers(1, 6),
        st.tuples(st.booleans(), st.sampled_from(SIDES), st.integers(1, 6), st.booleans()),
    ),
    max_size=40,
)


def asked(
    harness: Harness, *, background: bool, side: int = 128, steps: int = 5, guided: bool = True
) -> Generation:
    scale = 5.0 if guided else 1.0
    request = make_request(width=side, height=side, steps=steps, guidance_scale=scale)
    return harness.submit(request, background=background)


def crowd(harness: Harness, count: int = 1000, steps: int = 5) -> list[Generation]:
    """As many in the background as are let in."""
    admitted = []
    for _ in range(count):
        try:
            admitted.append(asked(harness, background=True, steps=steps))
        except Unavailable:
            break
    return admitted


def rows(batch: list[Sample]) -> int:
    return sum(sample.rows for sample in batch)


@given(ARRIVALS)
def test_whoever_is_interactive_steps_first_and_all_end_once(
    arrivals: list[int | tuple[bool, int, int, bool]],
) -> None:
    """No pass without an interactive sample while one has steps left, so that none waits for more than the step that
    was under way when it came; what rides along takes nobody's rows and little time; nothing starves."""
    harness = Harness(TimedModel(overhead=0.2), max_rows=8)
    scheduler, model = harness.backlog.scheduler, harness.model
    admitted = []

    def tick() -> None:
        interactive, passes = len(scheduler), len(model.batches)
        harness.loop.tick()
        if not interactive:
            return
        (batch,) = model.batches[passes:]
        first = [sample for sample in batch if not sample.background]
        riders = batch[len(first) :]
        assert first
        assert all(sample.background for sample in riders)
        if riders:
            key = batch[0].key
            queue = scheduler.queues.get(key)
            assert not queue or not any(flow.waiting for flow in queue.flows.values())
            alone, together = (model.overhead + rows(each) * scale(each) for each in (first, batch))
            assert together <= MOST_GROWTH * alone * 1.01

    def scale(batch: list[Sample]) -> float:
        return model.row_seconds * model._scale(batch)

    for each in arrivals:
        if isinstance(each, int):
            for _ in range(each):
                tick()
        else:
            background, side, steps, guided = each
            with suppress(Unavailable):
                admitted.append(
                    asked(harness, background=background, side=side, steps=steps, guided=guided)
                )
    harness.finish()
    assert all(isinstance(harness.ending(each), Completed) for each in admitted)
    assert not len(harness.backlog.classes)


def test_interactive_requests_are_predicted_as_if_nothing_were_in_the_background() -> None:
    alone, beside = Harness(), Harness()
    crowd(beside)
    beside.loop.tick()
    for harness in (alone, beside):
        for _ in range(20):
            asked(harness, background=False)
    assert list(alone.predicted.values()) == pytest.approx(list(beside.predicted.values())[-20:])
    assert alone.backlog.seconds() == pytest.approx(beside.backlog.seconds())


def test_batches_in_the_background_are_full_when_nobody_else_asks() -> None:
    harness = Harness()
    crowd(harness, steps=20)
    harness.loop.tick()
    (batch,) = harness.model.batches
    assert rows(batch) == harness.costs.cap(batch[0].key)


def test_a_step_in_the_background_is_short_while_interactive_requests_are_about() -> None:
    harness = Harness(TimedModel(overhead=0.001))
    model = harness.model
    asked(harness, background=False, steps=20)
    harness.finish()
    alone = harness.backlog.classes.alone
    crowd(harness, steps=20)
    assert harness.backlog.classes.are_about
    while harness.backlog.classes.are_about:
        crowd(harness, steps=20)
        began = harness.clock()
        harness.loop.tick()
        seconds = model.overhead + rows(model.batches[-1]) * model.row_seconds
        assert seconds <= SHORT_STEP * alone or len(model.batches[-1]) == 1
        # Beside it there are a picture's decoding and no more.
        assert harness.clock() - began <= 2 * SHORT_STEP * alone + model.decode_time
    crowd(harness, steps=20)
    harness.loop.tick()
    # All are past, and the batch is large again.
    assert rows(model.batches[-1]) == harness.costs.cap(model.batches[-1][0].key)


def test_what_is_done_in_the_background_is_decoded_beside_interactive_requests_that_never_end() -> (
    None
):
    harness = Harness(TimedModel(overhead=1.0, row_seconds=0.001, decode_time=0.3))
    waiting = crowd(harness)
    asked(harness, background=False, steps=150)
    interactive = asked(harness, background=False, steps=150)
    spent = 0.0
    for _ in range(100):
        waiting += crowd(harness)
        began, decoded = harness.clock(), len(harness.model.decoded)
        harness.loop.tick()
        chunks = harness.model.decoded[decoded:]
        assert all(len(chunk) == 1 for chunk in chunks), "an interactive step waits for one picture"
        spent += 0.3 * len(chunks)
        assert harness.clock() - began < 1.0 + 0.3 + 0.1
    assert not interactive.ended
    assert sum(each.ended for each in waiting) > 10
    assert spent <= CREDIT_SHARE * harness.clock() + MOST_CREDIT


def test_only_as_much_is_let_in_in_the_background_as_keeps_batches_full() -> None:
    harness = Harness()
    admitted = crowd(harness)
    first = admitted[0].samples[0]
    assert rows([each.samples[0] for each in admitted]) == BACKGROUND_BATCHES * harness.costs.cap(
        first.key
    )
    with pytest.raises(Unavailable) as refused:
        asked(harness, background=True)
    assert refused.value.reason == Unavailable.FULL
    assert refused.value.lasts == 0, "the gateway would refuse others unasked"
    asked(harness, background=False)
    harness.finish()
    assert crowd(harness), "a place that comes free is given again"
    harness.finish()


def test_what_cannot_end_in_time_is_refused_in_the_background_too() -> None:
    harness = Harness()
    with pytest.raises(DeadlineExceeded):
        harness.submit(make_request(steps=150), seconds=0.1, background=True)
    assert not len(harness.backlog.classes)


def test_both_classes_are_counted_as_active() -> None:
    harness = Harness()
    asked(harness, background=True)
    asked(harness, background=False)
    assert (harness.backlog.samples(), harness.backlog.waiting()) == (2, 1)


def test_what_rides_along_makes_an_interactive_step_little_longer() -> None:
    harness = Harness(TimedModel(overhead=0.2))
    crowd(harness)
    harness.loop.tick()
    asked(harness, background=False)
    harness.loop.tick()
    started, ridden = harness.model.batches
    assert not ridden[0].background
    assert 1 < len(ridden) < len(started)
    alone, together = (0.2 + 0.01 * rows(batch) for batch in (ridden[:1], ridden))
    assert together <= MOST_GROWTH * alone


def test_no_row_that_an_interactive_request_waits_for_goes_to_the_background() -> None:
    harness = Harness(TimedModel(overhead=10.0), max_rows=8)
    asked(harness, background=True, guided=False)
    harness.loop.tick()
    for guided in (True, True, True, False, True):
        asked(harness, background=False, guided=guided)
    harness.loop.tick()
    assert harness.backlog.waiting() == 1
    assert [sample.background for sample in harness.model.batches[-1]] == [False] * 4


def simulated(rate: float, *, background: bool, seconds: float = 60.0) -> tuple[float, float]:
    """Of Poisson arrivals on the double's clock the 95th percentile of the latency, and pictures per second in the
    background beside them."""
    harness = Harness(TimedModel(overhead=0.004, row_seconds=0.006, decode_time=0.01))
    arrivals = [due for due, _ in drivers.arrivals(rate=rate, seconds=seconds, steps=(20,), seed=3)]
    sent: dict[Generation, float] = {}
    latencies: list[float] = []
    behind: list[Generation] = []

    def ended() -> None:
        for each in [each for each in sent if each.ended]:
            latencies.append(harness.clock() - sent.pop(each))

    for due in arrivals:
        while harness.clock() < due:
            if background and harness.backlog.classes.background.waiting() < 8:
                behind += crowd(harness, steps=20)
            if harness.loop.idle:
                break
            harness.loop.tick()
            ended()
        harness.clock.now = max(harness.clock(), due)
        sent[asked(harness, background=False, steps=20)] = due
    while sent:
        harness.loop.tick()
        ended()
    latencies.sort()
    drawn = sum(each.ended for each in behind) / harness.clock()
    return latencies[int(0.95 * len(latencies))], drawn


def test_a_crowd_in_the_background_costs_interactive_requests_little() -> None:
    without, _ = simulated(1.5, background=False)
    beside, drawn = simulated(1.5, background=True)
    assert beside <= 1.25 * without
    assert drawn > 1.0, "nothing was drawn in the gaps"


def test_alone_the_background_draws_as_much_as_a_crowd_of_others() -> None:
    rates = []
    for background in (False, True):
        harness = Harness()
        drawn: list[Generation] = []
        while harness.clock() < 100.0:
            while harness.backlog.samples() < 32:
                drawn.append(asked(harness, background=background, steps=20))
            harness.loop.tick()
        rates.append(sum(each.ended for each in drawn) / harness.clock())
    assert rates[1] >= 0.95 * rates[0]
