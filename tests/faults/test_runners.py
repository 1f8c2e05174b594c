"""Runners that are killed or hang: what was admitted is drawn all the same, and nobody waits beyond a deadline."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL.Image import Image

from tests.e2e.harness import Server, eventually
from tests.e2e.test_pictures import assert_same, image_of
from tests.faults.asking import LONG, ask_both, draw, is_idle, post
from tests.faults.conftest import Timed
from tests.faults.normality import Normality
from tests.faults.processes import busy, stopped
from text2image.core.errors import DeadlineExceeded, Unavailable
from text2image.core.messages import Picture, Queued, State

# As many as make even the one that is taken to be three times as slow draw some of them.
SEEDS = range(10, 18)
# Pixels; a picture of this side takes a while to decode.
SIDE = 384


@pytest.fixture(scope="module")
def undisturbed(pairs: Normality) -> list[Image]:
    """The picture of each seed, drawn while nothing is wrong."""
    return [draw(pairs.server, seed, steps=LONG) for seed in SEEDS]


def ready(server: Server) -> float:
    return server.metric("text2image_runners_ready")


def active(server: Server, runner: int) -> int:
    with server.engine(runner) as engine:
        return engine.status().active


def is_loading(server: Server, runner: int) -> bool:
    # Asked anew each time: a connection that was refused waits for a second, in which a small model is loaded.
    try:
        with server.engine(runner) as engine:
            return engine.status(timeout=1.0).state is State.LOADING
    except (Unavailable, DeadlineExceeded):
        return False


def test_a_runner_killed_when_idle_and_again_while_it_loads_is_missed_by_nobody(
    pairs: Normality, timed: Timed
) -> None:
    server = pairs.server
    before = draw(server, 2, steps=4)
    victim = server.runners()[0]
    with timed("runner killed, idle; its successor killed while loading: back to normal"):
        victim.kill()
        eventually(lambda: ready(server) == 1, "the loss is noticed")
        with ThreadPoolExecutor() as pool:
            meanwhile = pool.submit(draw, server, 2, steps=4)
            eventually(lambda: is_loading(server, 0), "another one loads")
            loading = server.runners()[0]
            assert loading.pid != victim.pid
            loading.kill()
            assert_same(meanwhile.result(), before)
        assert_same(draw(server, 2, steps=4), before)
        eventually(lambda: len(server.runners()) == 2, "a third one starts")
        pairs.returns()


def test_a_runner_killed_in_mid_step_costs_no_picture(
    pairs: Normality, undisturbed: list[Image], timed: Timed
) -> None:
    server = pairs.server
    resends = server.metric("text2image_resends_total")
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        asked = ask_both(server, pool, SEEDS, steps=LONG)
        busy(server, asked)
        with timed("runner killed, mid-step: back to normal"):
            with timed("runner killed, mid-step: its requests answered"):
                server.runners()[1].kill()
                for future, expected in zip(asked, undisturbed, strict=True):
                    assert_same(future.result(), expected)
            pairs.returns()
    assert server.metric("text2image_resends_total") > resends


def test_a_runner_killed_in_mid_decode_costs_no_picture_and_repeats_none(
    pairs: Normality, timed: Timed
) -> None:
    server = pairs.server
    # More pictures than step at once, so that some have yet to be decoded when the first is out.
    fields = {"steps": 1, "n": 8, "width": SIDE, "height": SIDE, "seed": 30}
    with server.client() as client:
        before = client.generate("a red fox", **fields)
        resends = server.metric("text2image_resends_total")
        events = client.stream("a red fox", **fields)
        assert isinstance(next(events), Queued)
        (drawing,) = (index for index in (0, 1) if active(server, index))
        victim = server.runners()[drawing]
        pictures = [next(event for event in events if isinstance(event, Picture))]
        with timed("runner killed, mid-decode: back to normal"):
            victim.kill()
            pictures += [event for event in events if isinstance(event, Picture)]
            pairs.returns()
    assert server.metric("text2image_resends_total") > resends
    assert sorted(picture.index for picture in pictures) == list(range(8))
    for picture in pictures:
        assert_same(image_of(picture.png), image_of(before[picture.index].png))


def test_a_hung_runner_is_noticed_and_its_work_done_elsewhere(
    pairs: Normality, undisturbed: list[Image], timed: Timed
) -> None:
    server = pairs.server
    with ThreadPoolExecutor(len(SEEDS)) as pool:
        asked = ask_both(server, pool, SEEDS, steps=LONG)
        busy(server, asked)
        with stopped(server.runners()[1]):
            with timed("one of two runners hangs: its requests answered"):
                for future, expected in zip(asked, undisturbed, strict=True):
                    assert_same(future.result(), expected)
            # Each gateway process pings for itself, and the slower one may have had nothing there to wait for.
            eventually(lambda: ready(server) == 1, "both gateways notice")
            assert_same(draw(server, SEEDS[0], steps=LONG), undisturbed[0])
        with timed("one of two runners hung and goes on: back to normal"):
            pairs.returns()
    abandoned = server.wait_for(is_idle, "it has given up what others have drawn", runner=1)
    assert abandoned.counters.cancelled


def test_when_all_runners_hang_deadlines_hold_and_who_can_wait_gets_a_picture(
    pairs: Normality, timed: Timed
) -> None:
    server = pairs.server
    before = draw(server, 20, steps=4)
    with ThreadPoolExecutor() as pool:
        with stopped(*server.runners()):
            patient = pool.submit(draw, server, 20, steps=4)
            hurried = [pool.submit(post, server, seed, timeout=15) for seed in (21, 22)]
            assert post(server, 23, timeout=2).status_code == 504
            with timed("all runners hang: noticed, beyond 2 s, after"):
                eventually(lambda: ready(server) == 0, "the loss is noticed")
            refused = post(server, 24)
            assert (refused.status_code, refused.json()["reason"]) == (503, Unavailable.NO_RUNNER)
            assert int(refused.headers["Retry-After"]) > 0
            with server.client() as client, pytest.raises(Unavailable) as raised:
                client.generate("a red fox")
            assert raised.value.retry_after
            assert not server.is_ready()
            for answer in (future.result() for future in hurried):
                assert answer.status_code == 504
                assert "deadline" in answer.json()["message"]
            assert not patient.done()
        with timed("all runners hung and go on: back to normal"):
            assert_same(patient.result(), before)
            pairs.returns()
    for runner in (0, 1):
        server.wait_for(is_idle, "nothing is left of what was given up", runner)
