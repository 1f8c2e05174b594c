"""A visitor's gallery: newest first, bounded, and each picture with the order that draws it again alone."""

from __future__ import annotations

from dataclasses import replace

from frontend.history import History
from frontend.starts import Start
from tests.page.harness import picture_of
from tests.page.test_drawing import ORDER


def test_the_newest_drawing_comes_first_with_its_pictures_in_order() -> None:
    history = History()
    history.add(ORDER, [picture_of(1)])
    history.add(ORDER, [picture_of(5), picture_of(6)])
    assert [piece.picture.seed for piece in history] == [5, 6, 1]
    assert history.newest is next(iter(history))


def test_the_oldest_are_forgotten_beyond_the_number_and_beyond_the_bytes() -> None:
    size = len(picture_of().png)
    for history in (History(max_pieces=2), History(max_bytes=2 * size)):
        for seed in range(4):
            history.add(ORDER, [picture_of(seed)])
        assert [piece.picture.seed for piece in history] == [3, 2]


def test_pictures_that_were_begun_from_count_too_but_once() -> None:
    size = len(picture_of().png)
    begun = replace(ORDER, start=Start(64, 64, bytes(10 * size)))
    history = History(max_bytes=14 * size)
    for seed in range(6):
        history.add(begun, [picture_of(seed)])
    assert len(history) == 4


def test_the_newest_picture_stays_however_large_it_is() -> None:
    history = History(max_bytes=1)
    history.add(ORDER, [picture_of(1)])
    assert len(history) == 1


def test_a_picture_of_many_is_drawn_again_alone() -> None:
    many = replace(ORDER, n=4, seed=7)
    pieces = History().add(many, [picture_of(7), picture_of(8, 1)])
    assert [piece.order for piece in pieces] == [
        replace(many, n=1, seed=7),
        replace(many, n=1, seed=8),
    ]


def test_a_variation_differs_in_its_seed_alone() -> None:
    order = replace(ORDER, n=4, seed=7)
    varied = order.varied()
    assert varied.seed != 7
    assert varied == replace(order, n=1, seed=varied.seed)
