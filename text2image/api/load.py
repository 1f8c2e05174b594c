"""What balancers are told of a gateway's load, on each transport."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders

from text2image.gateway.generate import Gateway
from text2image.net import orca
from text2image.net.orca_load_report_pb2 import OrcaLoadReport
from text2image.net.rpc import Context


def report_of(gateway: Gateway) -> OrcaLoadReport:
    """The load of all runners that this gateway sends to, and what it has answered itself in the last seconds."""
    load = gateway.runners.load
    requests, failures = gateway.metrics.rates.per_second()
    return OrcaLoadReport(
        application_utilization=load.utilization,
        rps_fractional=requests,
        eps=failures,
        named_metrics={
            "requests_waiting": load.waiting,
            "requests_running": max(0, load.active - load.waiting),
            "backlog_seconds": load.backlog_seconds,
        },
    )


def add_trailers(context: Context, gateway: Gateway) -> None:
    """Has a call end with the load as it is now, unless it is asked again; an error's status comes beside it."""
    context.set_trailing_metadata(orca.trailers(report_of(gateway)))


def add_header(asked: Headers, answer: MutableHeaders, gateway: Gateway) -> None:
    """Tells the load in an HTTP answer, if the request asks for it."""
    form = asked.get(orca.FORMAT_HEADER)
    if form and (value := orca.header(report_of(gateway), form)):
        answer[orca.HEADER] = value
