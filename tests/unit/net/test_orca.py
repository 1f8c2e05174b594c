"""Load reports are written as Envoy reads them."""

from __future__ import annotations

import json

from text2image.net import orca
from text2image.net.orca_load_report_pb2 import OrcaLoadReport

# As xds/data/orca/v3/orca_load_report.proto of cncf/xds has them.
NUMBERS = {
    "cpu_utilization": 1,
    "mem_utilization": 2,
    "request_cost": 4,
    "utilization": 5,
    "rps_fractional": 6,
    "eps": 7,
    "named_metrics": 8,
    "application_utilization": 9,
}
REPORT = OrcaLoadReport(
    application_utilization=0.5, rps_fractional=2, named_metrics={"requests_waiting": 3}
)


def test_fields_have_the_numbers_of_the_published_message() -> None:
    fields = OrcaLoadReport.DESCRIPTOR.fields
    assert {field.name: field.number for field in fields} == NUMBERS
    assert orca.trailers(REPORT) == ((orca.TRAILER, REPORT.SerializeToString()),)


def test_both_forms_of_the_header() -> None:
    text = orca.header(REPORT, "text")
    assert text == (
        "TEXT application_utilization=0.5,named_metrics.requests_waiting=3.0,rps_fractional=2.0"
    )
    kind, _, written = (orca.header(REPORT, " JSON ") or "").partition(" ")
    assert kind == "JSON"
    assert json.loads(written) == {
        "application_utilization": 0.5,
        "rps_fractional": 2.0,
        "named_metrics": {"requests_waiting": 3.0},
    }
    assert orca.header(REPORT, "protobuf") is None
    assert "\n" not in written
