"""The scheduler's order and its turns among sizes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.doubles import key_of, make_request
from text2image.core.messages import Share, StreamOptions
from text2image.engine.sample import BatchKey, Generation, Plan, Sample
from text2image.engine.scheduler import BatchLimits, Scheduler, fill

SMALL, LARGE = key_of(8, 8), key_of(32, 32)


def make_sample(key: BatchKey = SMALL, rows: int = 2, steps: int = 4, owner: str = "") -> Sample:
    generation = Generation.create(
        make_request(steps=steps),
        StreamOptions(),
        plan=Plan(key, rows, steps),
        now=0.0,
        deadline=1e9,
        share=Share(owner),
    )
    return generation.samples[0]


def test_a_sample_that_leaves_gives_its_rows_to_the_next_in_line() -> None:
    scheduler = Scheduler()
    samples = [make_sample() for _ in range(3)]
    for sample in samples:
        scheduler.add(sample)
    scheduler.remove(samples[0])
    assert scheduler.select(lambda key: BatchLimits(4)) == samples[1:]
    assert samples[0] not in scheduler


def test_a_cap_that_falls_takes_no_rows_from_what_has_begun_but_memory_does() -> None:
    scheduler = Scheduler()
    samples = [make_sample() for _ in range(5)]
    for sample in samples:
        scheduler.add(sample)
    scheduler.select(lambda key: BatchLimits(6))
    assert scheduler.select(lambda key: BatchLimits(2)) == samples[:3]
    assert scheduler.select(lambda key: BatchLimits(6, fit=4)) == samples[:2]


def test_of_two_owners_charged_alike_the_one_with_fewer_rows_is_next() -> None:
    scheduler = Scheduler()
    first, second, newcomer = make_sample(), make_sample(), make_sample(owner="newcomer")
    scheduler.add(first)
    scheduler.add(second)
    assert scheduler.select(lambda key: BatchLimits(2)) == [first]
    scheduler.add(newcomer)
    assert scheduler.select(lambda key: BatchLimits(4)) == [first, newcomer]


def test_only_samples_of_one_size_share_a_batch() -> None:
    scheduler = Scheduler()
    for key in (SMALL, LARGE, SMALL, LARGE):
        scheduler.add(make_sample(key))
    assert len({sample.key for sample in scheduler.select(lambda key: BatchLimits(100))}) == 1


def test_sizes_share_the_time_so_that_large_pictures_do_not_block_small_ones() -> None:
    scheduler = Scheduler()
    scheduler.add(make_sample(LARGE))
    scheduler.add(make_sample(SMALL))
    turns: Counter[BatchKey] = Counter()
    for _ in range(110):
        (sample,) = scheduler.select(lambda key: BatchLimits(2))
        turns[sample.key] += 1
        seconds = 1.0 if sample.key == LARGE else 0.1
        scheduler.charge(sample.key, seconds, now=0.0, alone=seconds)
    assert turns[SMALL] >= 9 * turns[LARGE]


def test_a_size_that_was_away_has_saved_up_no_claim() -> None:
    scheduler = Scheduler()
    busy = make_sample(LARGE)
    scheduler.add(busy)
    for _ in range(100):
        scheduler.charge(LARGE, 1.0, now=0.0, alone=1.0)
    scheduler.add(make_sample(SMALL))
    turns: Counter[BatchKey] = Counter()
    for _ in range(10):
        (sample,) = scheduler.select(lambda key: BatchLimits(2))
        turns[sample.key] += 1
        scheduler.charge(sample.key, 1.0, now=0.0, alone=1.0)
    assert turns[LARGE] >= 4


def test_removing_what_is_not_there_changes_nothing() -> None:
    scheduler = Scheduler()
    sample = make_sample()
    scheduler.remove(sample)
    scheduler.add(sample)
    scheduler.remove(sample)
    scheduler.remove(sample)
    assert len(scheduler) == 0
    assert scheduler.select(lambda key: BatchLimits(8)) == []


@given(st.lists(st.sampled_from([1, 2]), min_size=1), st.integers(2, 40))
def test_a_batch_never_exceeds_its_rows_and_never_leaves_rows_that_a_waiting_sample_fits(
    rows: list[int], cap: int
) -> None:
    samples = [make_sample(rows=each) for each in rows]
    chosen = fill(samples, cap)
    free = cap - sum(sample.rows for sample in chosen)
    assert free >= 0
    assert all(sample.rows > free for sample in samples if sample not in chosen)
    assert chosen[0] is samples[0]
