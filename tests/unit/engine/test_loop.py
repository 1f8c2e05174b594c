"""The step loop's promises, each on its own and on a clock that the test moves."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.doubles import POISON, TimedModel, make_request
from tests.harness import NATIVE, Harness
from text2image.core.errors import Cancelled, DeadlineExceeded, Internal, Unavailable
from text2image.core.messages import Completed, Progress, StreamOptions
from text2image.engine.models.contract import DeviceLost, OutOfMemory
from text2image.engine.sample import Generation, Sample


def test_invariant_2_a_request_joins_at_the_next_step_and_leaves_at_its_own_last() -> None:
    harness = Harness()
    long = harness.submit(make_request(steps=10, seed=1))
    harness.loop.tick()
    short = harness.submit(make_request(steps=2, seed=2))
    sample = short.samples[0]
    harness.loop.tick()
    harness.loop.tick()
    assert isinstance(harness.ending(short), Completed)
    assert [sample in batch for batch in harness.model.batches] == [False, True, True]
    assert not long.ended, "the short one waited for the long one's end"


def test_invariant_3_guidance_costs_a_second_row_and_nothing_else_does() -> None:
    harness = Harness(max_rows=4)
    for scale in (5.0, 1.0, 0.0):
        harness.submit(make_request(guidance_scale=scale))
    harness.loop.tick()
    assert [sample.rows for sample in harness.model.batches[0]] == [2, 1, 1]


def test_invariant_6_a_poisoned_sample_fails_alone() -> None:
    harness = Harness()
    good = [harness.submit(make_request(seed=seed)) for seed in range(7)]
    bad = harness.submit(make_request(POISON))
    harness.finish()
    assert isinstance(harness.ending(bad), Internal)
    assert all(isinstance(harness.ending(each), Completed) for each in good)
    assert harness.loop.counters["retries"] > 0


def test_invariant_6_a_prompt_that_cannot_be_encoded_fails_alone() -> None:
    class Illiterate(TimedModel):
        def encode(self, samples):  # type: ignore[no-untyped-def]
            if any(POISON in sample.generation.request.prompt for sample in samples):
                raise ValueError("no such token")
            return super().encode(samples)

    harness = Harness(Illiterate())
    good = [harness.submit(make_request(seed=seed)) for seed in range(3)]
    bad = harness.submit(make_request(POISON))
    harness.finish()
    assert isinstance(harness.ending(bad), Internal)
    assert all(isinstance(harness.ending(each), Completed) for each in good)


def test_invariant_6_out_of_memory_lowers_the_cap_and_nobody_sees_it() -> None:
    harness = Harness(TimedModel(memory_rows=6))
    generations = [harness.submit(make_request(seed=seed)) for seed in range(10)]
    harness.finish()
    assert all(isinstance(harness.ending(each), Completed) for each in generations)
    assert harness.model.freed > 0
    assert harness.costs.cap(NATIVE) <= 6


def test_invariant_6_a_picture_that_fits_no_memory_is_refused_in_words() -> None:
    harness = Harness(TimedModel(memory_rows=1))
    generation = harness.submit()
    harness.finish()
    ending = harness.ending(generation)
    assert isinstance(ending, Unavailable)
    assert "128x128" in ending.message


def test_invariant_6_memory_that_comes_free_on_the_second_try_saves_a_lone_picture() -> None:
    model = TimedModel()
    failures = iter([True])

    class Once(TimedModel):
        def predict(self, samples):  # type: ignore[no-untyped-def]
            if next(failures, False):
                raise OutOfMemory("held by another")
            return super().predict(samples)

    harness = Harness(Once(clock=model.clock))
    generation = harness.submit()
    harness.finish()
    assert isinstance(harness.ending(generation), Completed)


def test_invariant_6_a_sample_whose_latents_cannot_be_decoded_fails_alone() -> None:
    class Broken(TimedModel):
        def decode(self, samples):  # type: ignore[no-untyped-def]
            if any(sample.seed == 3 for sample in samples):
                raise ValueError("the latents are not finite")
            return super().decode(samples)

    harness = Harness(Broken())
    generations = [harness.submit(make_request(seed=seed)) for seed in range(5)]
    harness.finish()
    endings = [type(harness.ending(each)) for each in generations]
    assert endings == [Completed, Completed, Completed, Internal, Completed]


def test_invariant_6_a_sample_that_fails_after_its_sibling_stepped_takes_only_its_own_request() -> (
    None
):
    class Broken(TimedModel):
        def advance_one(self, sample, prediction):  # type: ignore[no-untyped-def]
            if sample.generation.request.prompt == "broken" and sample.index == 1:
                return ValueError("a scheduler failed")
            return super().advance_one(sample, prediction)

    harness = Harness(Broken())
    every_step = StreamOptions(progress_every=1, preview_every=1)
    good = harness.submit(make_request(seed=1), options=every_step)
    bad = harness.submit(make_request("broken", n=2), options=every_step)
    harness.finish()
    assert isinstance(harness.ending(bad), Internal)
    assert isinstance(harness.ending(good), Completed)
    assert harness.backlog.seconds() == 0


def test_invariant_6_a_preview_that_fails_costs_nobody_a_picture() -> None:
    class Blind(TimedModel):
        def preview(self, sample):  # type: ignore[no-untyped-def]
            raise ValueError("no projection")

    harness = Harness(Blind())
    generation = harness.submit(options=StreamOptions(progress_every=1, preview_every=1))
    harness.finish()
    assert isinstance(harness.ending(generation), Completed)


def test_invariant_7_a_cancelled_request_takes_no_further_step_and_frees_its_state() -> None:
    harness = Harness()
    generation = harness.submit(make_request(steps=10))
    sample = generation.samples[0]
    harness.loop.tick()
    harness.loop.cancel(generation)
    assert isinstance(harness.ending(generation), Cancelled)
    assert harness.loop.idle
    assert sample.state is None
    assert harness.backlog.seconds() == 0
    assert harness.loop.counters["steps_saved"] == 9


def test_invariant_7_a_deadline_takes_effect_within_one_step() -> None:
    harness = Harness()
    generation = harness.submit(make_request(steps=100), seconds=20)
    harness.loop.tick()
    harness.clock.now += 19.95
    harness.loop.tick()
    steps = len(harness.model.batches)
    harness.loop.tick()
    assert isinstance(harness.ending(generation), DeadlineExceeded)
    assert len(harness.model.batches) == steps


def test_invariant_4_what_comes_up_too_late_is_ended_before_any_work_is_spent_on_it() -> None:
    harness = Harness(max_rows=2)
    ahead = harness.submit(make_request(steps=20, seed=1))
    late = harness.submit(make_request(steps=20, seed=2), seconds=3)
    sample = late.samples[0]
    harness.model.slowdown = 3.0
    harness.finish()
    ending = harness.ending(late)
    assert isinstance(ending, Unavailable)
    assert ending.reason == Unavailable.FULL
    assert ending.retry_after
    assert not any(sample in batch for batch in harness.model.batches)
    assert isinstance(harness.ending(ahead), Completed)
    assert harness.loop.counters["dropped"] == 1
    assert harness.backlog.samples() == 0


def test_invariant_4_of_several_pictures_those_begun_are_finished_and_the_late_ones_never_begun() -> (
    None
):
    harness = Harness(max_rows=2)
    several = harness.submit(make_request(steps=20, n=3, seed=5), seconds=4.5)
    other = harness.submit(make_request(steps=20, seed=90))
    harness.loop.tick()
    harness.model.slowdown = 3.0
    harness.finish()
    assert isinstance(harness.ending(other), Completed)
    ending = harness.ending(several)
    assert isinstance(ending, DeadlineExceeded)
    assert "2 of 3" in ending.message
    assert [image.seed for image in harness.images(several)] == [5]
    assert {sample.seed for batch in harness.model.batches for sample in batch} == {90, 5}
    assert harness.backlog.samples() == 0


def test_invariant_4_a_long_line_that_a_pause_made_late_is_dropped_in_parts_while_others_step() -> (
    None
):
    harness = Harness(max_rows=16)
    line = [
        harness.submit(make_request(steps=steps, seed=seed), owner=f"owner {seed}", seconds=1000)
        for seed, steps in enumerate(4 * [20] + 4 * [10] + 92 * [20])
    ]
    for _ in range(10):
        harness.loop.tick()
    harness.clock.now = 996.5
    begun = [sample for each in line for sample in each.samples if sample.step]
    steps = len(harness.model.batches)
    while harness.loop.counters["dropped"] < 80:
        before = harness.loop.counters["dropped"]
        harness.loop.tick()
        assert 8 < harness.loop.counters["dropped"] - before <= 32
    assert len(harness.model.batches) > steps + 2
    assert all(set(begun) <= set(batch) for batch in harness.model.batches[steps:])
    harness.finish()
    assert all(isinstance(harness.ending(sample.generation), Completed) for sample in begun)


def test_invariant_7_cancelling_between_the_last_step_and_the_picture_ends_it() -> None:
    class CancelsItself(TimedModel):
        def decode(self, samples):  # type: ignore[no-untyped-def]
            harness.loop.cancel(samples[0].generation)
            return super().decode(samples)

    harness = Harness(CancelsItself())
    generation = harness.submit()
    harness.finish()
    assert isinstance(harness.ending(generation), Cancelled)
    assert harness.images(generation) == []


def test_invariant_9_decoding_many_pictures_stalls_the_others_for_less_than_a_step() -> None:
    harness = Harness(TimedModel(decode_chunk=1, decode_time=0.05))
    for seed in range(8):
        harness.submit(make_request(steps=1, seed=seed))
    running = harness.submit(make_request(steps=50))
    step_seconds = 0.0
    while len(harness.model.batches) < 3:
        before = harness.clock()
        harness.loop.tick()
        step_seconds = max(step_seconds, harness.clock() - before)
    rows = sum(sample.rows for sample in harness.model.batches[0])
    full_step = harness.model.overhead + rows * harness.model.row_seconds
    assert step_seconds <= 1.5 * full_step + harness.model.decode_time
    assert not running.ended


def test_a_picture_of_n_is_drawn_from_its_own_seed_and_has_its_own_index() -> None:
    harness = Harness()
    generation = harness.submit(make_request(seed=40, n=4, steps=3))
    harness.finish()
    images = sorted(harness.images(generation), key=lambda image: image.index)
    assert [(image.index, image.seed) for image in images] == [(i, 40 + i) for i in range(4)]
    assert [tuple(image.pixels.rgb) for image in images] == [(40 + i, 3, i) for i in range(4)]


def test_progress_comes_as_often_as_asked_for_and_at_the_end() -> None:
    harness = Harness()
    generation = harness.submit(make_request(steps=7), options=StreamOptions(progress_every=3))
    harness.finish()
    steps = [out.step for out in harness.outcomes[generation] if isinstance(out, Progress)]
    assert steps == [3, 6, 7]


def test_previews_come_as_often_as_asked_for_and_never_instead_of_the_picture() -> None:
    harness = Harness()
    generation = harness.submit(make_request(steps=6), options=StreamOptions(preview_every=2))
    harness.finish()
    events = [out for out in harness.outcomes[generation] if isinstance(out, Progress)]
    assert [(event.step, event.preview is not None) for event in events] == [(2, True), (4, True)]


def test_previews_come_at_most_five_times_a_second_and_all_pictures_of_a_request_have_their_turn() -> (
    None
):
    harness = Harness()
    every_step = StreamOptions(progress_every=1, preview_every=1)
    generation = harness.submit(make_request(steps=200, n=3), options=every_step)
    harness.finish()
    events = [out for out in harness.outcomes[generation] if isinstance(out, Progress)]
    previews = Counter(event.index for event in events if event.preview)
    assert 3 * harness.clock() <= previews.total() <= 5 * harness.clock() + 1
    assert max(previews.values()) - min(previews.values()) <= 1


def test_steps_are_told_at_most_five_times_a_second_previews_among_them_and_the_last_always() -> (
    None
):
    harness = Harness()
    request = make_request(steps=200, n=3)
    options = [StreamOptions(1, 0), StreamOptions(1, 7), StreamOptions(3, 1)]
    generations = [harness.submit(request, options=each) for each in options]
    harness.finish()
    for generation in generations:
        events = [out for out in harness.outcomes[generation] if isinstance(out, Progress)]
        ends = [event.index for event in events if event.step == 200]
        assert sorted(ends) == [0, 1, 2]
        assert 3 * harness.clock() <= len(events) - len(ends) <= 5 * harness.clock() + 1
        told = Counter(event.index for event in events)
        assert max(told.values()) - min(told.values()) <= 1, "all pictures have their turn"


def test_few_previews_all_come_at_their_steps_beside_progress_that_is_thinned_out() -> None:
    harness = Harness()
    options = StreamOptions(progress_every=1, preview_every=50)
    generation = harness.submit(make_request(steps=200), options=options)
    harness.finish()
    events = [out for out in harness.outcomes[generation] if isinstance(out, Progress)]
    assert [event.step for event in events if event.preview] == [50, 100, 150]
    assert 10 < len(events) < 100


def test_an_owner_pays_for_its_previews_with_steps() -> None:
    harness = Harness(TimedModel(preview_time=0.1), max_rows=4)
    looking, blind = StreamOptions(preview_every=1), StreamOptions()
    for _ in range(40):
        harness.submit(make_request(steps=20), owner="looks", options=looking)
        harness.submit(make_request(steps=20), owner="does not", options=blind)
    until = harness.clock() + 60
    while harness.clock() < until:
        harness.loop.tick()
    steps = Counter(sample.owner for batch in harness.model.batches for sample in batch)
    assert steps["looks"] < 0.8 * steps["does not"]


def test_a_fault_of_the_loop_itself_ends_everything_once_and_leaves_it_usable() -> None:
    harness = Harness()
    generations = [harness.submit(make_request(n=2)) for _ in range(3)]
    harness.loop.tick()
    harness.loop.fail_all(RuntimeError("a fault of the loop"))
    assert all(isinstance(harness.ending(each), Internal) for each in generations)
    after = harness.submit()
    harness.finish()
    assert isinstance(harness.ending(after), Completed)
    assert harness.backlog.seconds() == 0


def test_an_hour_without_work_after_a_fault_of_the_loop_is_not_taken_for_slowness() -> None:
    harness = Harness()
    harness.submit()
    harness.loop.tick()
    harness.loop.fail_all(RuntimeError("a fault of the loop"))
    harness.clock.now += 3600
    harness.submit()
    harness.finish()
    assert harness.costs.overhead == pytest.approx(1, rel=0.1)


def test_what_ended_before_the_loop_was_told_of_it_leaves_nothing_behind() -> None:
    """Admission puts samples where the loop finds them, and the loop is told of the request a moment later."""
    harness = Harness()
    generation = Generation.create(
        make_request(steps=3),
        StreamOptions(),
        plan=harness.model.plan(make_request(steps=3)),
        now=0.0,
        deadline=1e6,
    )
    harness.backlog.admit(generation)
    while not generation.ended:
        harness.loop.tick()
    harness.loop.add(generation)
    assert harness.loop.idle
    assert isinstance(harness.ending(generation), Completed)


def test_a_lost_device_is_not_blamed_on_a_sample() -> None:
    class Lost(TimedModel):
        def predict(self, samples: list[Sample]):  # type: ignore[no-untyped-def, override]
            raise DeviceLost("an illegal memory access")

    harness = Harness(Lost())
    generation = harness.submit()
    with pytest.raises(DeviceLost):
        harness.loop.tick()
    assert not generation.ended
