"""Runners and gateways are killed, stopped, cut off, slowed down and ended under load: nothing admitted is lost."""

from __future__ import annotations

import signal

from tests.cluster.cluster import Clients, Cluster
from tests.e2e.harness import eventually


def unharmed(clients: Clients) -> None:
    """Nobody has seen anything so far."""
    assert clients.repeats == []
    assert clients.failures == []


def test_a_runner_killed_under_load_is_missed_by_nobody_and_works_again_when_it_is_back(
    cluster: Cluster,
) -> None:
    victim = cluster.runners[0]
    with cluster.busy() as clients:
        eventually(lambda: victim.status().active > 0, "it draws")
        victim.end(signal.SIGKILL)
        eventually(lambda: cluster.ready() == [2, 2], "its loss is noticed")
        clients.draws_more(10)
        victim.start()
        cluster.complete()
        eventually(lambda: victim.status().counters.completed > 0, "it draws again")
        unharmed(clients)


def test_a_runner_that_ends_finishes_what_it_has_and_gets_nothing_new(cluster: Cluster) -> None:
    leaving = cluster.runners[1]
    with cluster.busy() as clients:
        eventually(lambda: leaving.status().active > 0, "it draws")
        assert leaving.end(signal.SIGTERM) == 0
        clients.draws_more(10)
        unharmed(clients)
        resends = sum(gateway.metric("text2image_resends_total") for gateway in cluster.gateways)
        leaving.start()
        cluster.complete()
        unharmed(clients)
    assert resends == sum(g.metric("text2image_resends_total") for g in cluster.gateways)


def test_of_three_runners_one_hangs_and_one_is_cut_off_and_the_third_draws_it_all(
    cluster: Cluster,
) -> None:
    hung, unplugged, _ = cluster.runners
    with cluster.busy() as clients:
        with unplugged.host.cut_off():
            hung.send(signal.SIGSTOP)
            try:
                eventually(lambda: cluster.ready() == [1, 1], "both are noticed")
                clients.draws_more(10)
            finally:
                hung.send(signal.SIGCONT)
        cluster.complete()
        unharmed(clients)


def test_a_runner_that_slows_down_gets_less_to_do(cluster: Cluster) -> None:
    slow = cluster.runners[2]
    slow.send(signal.SIGUSR1)
    with cluster.busy() as clients:
        before = cluster.admitted()
        clients.draws_more(40)
        taken = [after - then for after, then in zip(cluster.admitted(), before, strict=True)]
        assert taken[2] < min(taken[:2])
        unharmed(clients)
    slow.end(signal.SIGTERM)
    slow.start()
    cluster.complete()


def test_a_gateway_that_ends_answers_all_that_it_has_taken(cluster: Cluster) -> None:
    leaving = cluster.gateways[0]
    with cluster.busy() as behind_haproxy, cluster.busy("nginx") as behind_nginx:
        assert leaving.stop() == 0
        for clients in (behind_haproxy, behind_nginx):
            clients.draws_more(10)
            assert clients.lost == []
            # Whoever came too late was refused, and the proxy asked the other one. In gRPC the client does it.
            assert [each for each in clients.repeats if each.startswith("http")] == []
        leaving.start()
        leaving.wait_until_ready()
    cluster.complete()


def test_a_gateway_that_gives_notice_is_left_before_it_refuses_anybody(cluster: Cluster) -> None:
    leaving = cluster.gateways[-1]
    with cluster.busy() as clients:
        assert leaving.stop() == 0
        clients.draws_more(10)
        # Over gRPC neither, where a refusal would reach the client.
        unharmed(clients)
        leaving.start()
        leaving.wait_until_ready()
    cluster.complete()


def test_a_gateway_killed_or_cut_off_costs_its_clients_one_more_attempt(cluster: Cluster) -> None:
    killed, unplugged = cluster.gateways[0].gateways()[0], cluster.gateway_hosts[1]
    with cluster.busy() as clients:
        killed.kill()
        cluster.complete()
        with unplugged.cut_off():
            clients.draws_more(10)
    cluster.complete()
