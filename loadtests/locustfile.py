"""The load runs by hand: `.venv/bin/locust -f loadtests/locustfile.py HttpVisitor`; docs/load.md tells how.

Locust finds its users here; the options below choose what they ask for, the shape of the run, and what it must keep.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gevent
from locust import events, stats
from locust.runners import WorkerRunner

from loadtests import shaped
from loadtests.mixes import Mix
from loadtests.records import Recorder
from loadtests.shapes import SHAPES
from loadtests.target import grpc_address
from loadtests.thresholds import Thresholds
from loadtests.users import FirstContractVisitor, GrpcVisitor, HttpVisitor

__all__ = ["FirstContractVisitor", "GrpcVisitor", "HttpVisitor"]


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    group = parser.add_argument_group("Text2Image")
    group.add_argument(
        "--grpc", default=grpc_address(), metavar="ADDRESS", help="host and port of gRPC"
    )
    group.add_argument(
        "--steps",
        default="10:1,20:2,40:1",
        metavar="MIX",
        help="step counts and their weights; an empty one leaves them to the server",
    )
    group.add_argument(
        "--sizes",
        default="",
        metavar="MIX",
        help="sizes and their weights, as 128x128:3,64x64:1; the server's own if empty",
    )
    group.add_argument(
        "--shape",
        choices=tuple(SHAPES),
        default=None,
        help="how the users come and go; needs --users (the peak) and --run-time",
    )
    group.add_argument(
        "--record", metavar="FILE", help="write a line of JSON for each request, exact to the end"
    )
    group.add_argument(
        "--max-failures", type=float, metavar="SHARE", help="exit with 1 if more fail, 0 to 1"
    )
    group.add_argument(
        "--max-p95",
        type=float,
        metavar="SECONDS",
        help="exit with 1 if the 95th percentile is longer",
    )
    group.add_argument(
        "--min-rate",
        type=float,
        metavar="PICTURES",
        help="exit with 1 if fewer are drawn in a second",
    )


@events.init.add_listener
def prepare(environment: Any, **_: Any) -> None:
    # The loop's clock has stood still since Locust began to import; the run's time would count that in.
    gevent.get_hub().loop.update_now()
    options = environment.parsed_options
    try:
        environment.mix = Mix(options.steps, options.sizes)
    except ValueError as error:
        raise SystemExit(f"locust: {error}") from None
    environment.grpc_address = options.grpc
    if options.shape:
        if not (options.num_users and options.run_time):
            raise SystemExit("locust: --shape needs --users for its peak and --run-time")
        shape = shaped.Shape(options.shape, options.num_users, options.run_time)
        shape.runner = environment.runner
        environment.shape_class = shape
    if options.record:
        environment.events.request.add_listener(Recorder(Path(options.record)).add)


@events.quitting.add_listener
def judge(environment: Any, **_: Any) -> None:
    """Sets the exit status. Without thresholds it is Locust's own: 1 if anything failed."""
    options = environment.parsed_options
    thresholds = Thresholds(options.max_failures, options.max_p95, options.min_rate)
    if isinstance(environment.runner, WorkerRunner) or not thresholds.any:
        return
    broken = thresholds.broken(environment.stats.total)
    for line in broken:
        print(f"threshold: {line}")
    environment.process_exit_code = 1 if broken else 0


@events.quitting.add_listener
def complete_csv(environment: Any, **_: Any) -> None:
    """Lets Locust write its CSVs once more: it does so once a second, and not for the last answers of a run."""
    if environment.parsed_options.csv_prefix:
        gevent.sleep(1.5 * stats.CSV_STATS_INTERVAL_SEC)
