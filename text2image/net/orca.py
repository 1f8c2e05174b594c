"""Load reports for balancers (Open Request Cost Aggregation), as Envoy and gRPC's own weighted policies read them.

gRPC answers carry one in their trailers (gRFC A51), HTTP answers in a header, in one of the two forms in which Envoy
reads `endpoint-load-metrics`, if the request asks for it.
"""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict, MessageToJson

from text2image.net.orca_load_report_pb2 import OrcaLoadReport

TRAILER = "endpoint-load-metrics-bin"
HEADER = "Endpoint-Load-Metrics"
# By which a request asks for the header, and in which form.
FORMAT_HEADER = "Endpoint-Load-Metrics-Format"


def trailers(report: OrcaLoadReport) -> tuple[tuple[str, bytes], ...]:
    """The metadata that ends a call."""
    return ((TRAILER, report.SerializeToString()),)


def header(report: OrcaLoadReport, form: str) -> str | None:
    """The header's value in a form, `TEXT` or `JSON`; None for a form that is not known."""
    match form.strip().upper():
        case "JSON":
            return "JSON " + MessageToJson(
                report, preserving_proto_field_name=True, indent=None, sort_keys=True
            )
        case "TEXT":
            return "TEXT " + ",".join(
                _pairs(MessageToDict(report, preserving_proto_field_name=True))
            )
        case _:
            return None


def _pairs(fields: dict[str, float | dict[str, float]]) -> list[str]:
    pairs = []
    for name, value in sorted(fields.items()):
        if isinstance(value, dict):
            pairs += [f"{name}.{key}={number}" for key, number in sorted(value.items())]
        else:
            pairs.append(f"{name}={value}")
    return pairs
