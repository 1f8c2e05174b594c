"""The log: lines for people on a terminal, elsewhere one JSON object a line; each names the trace that it belongs to.

BentoML's handlers write both, so its own lines and the access log come out in the same form. What is meant for the
person who started the server (the ready block, warnings before the start) is no part of it: it goes to standard error.
"""

from __future__ import annotations

import logging
from typing import Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from text2image.observe import tracing

Format = Literal["auto", "text", "json"]

# Whose handlers BentoML makes; the root's are the first.
_LOGGERS = ("", "bentoml", "uvicorn.error", "circus")
# Attributes of a record that BentoML adds for its own lines; what they tell stands in ours by other names.
_BENTOML_ATTRIBUTES = (
    "levelname_bracketed",
    "component",
    "trace_msg",
    "request_id",
    "service_name",
)


class InTrace(logging.Filter):
    """Adds to a record the trace that it belongs to, and the service that wrote it."""

    def filter(self, record: logging.LogRecord) -> bool:
        trace_id = tracing.trace_id()
        record.__dict__.update(
            trace_id=trace_id or None,
            trace_msg=f" (trace={trace_id})" if trace_id else "",
            service=getattr(record, "component", "").strip("[]") or None,
        )
        return True


class OneObject(JsonFormatter):
    """A record as one line of JSON: when, how bad, who, what, and whatever else it carries."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "service", "name", "message", "trace_id"],
            rename_fields={"levelname": "level", "name": "logger"},
            reserved_attrs=[*RESERVED_ATTRS, *_BENTOML_ATTRIBUTES],
            timestamp="time",
        )

    def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
        when = {"time": log_data.pop("time")}
        return when | {name: value for name, value in log_data.items() if value is not None}


def set_up(form: Format) -> None:
    """Gives BentoML's handlers their form; by `auto` each is text on a terminal and JSON elsewhere.

    Call it in every process, once BentoML has made its handlers.
    """
    handlers = {handler for name in _LOGGERS for handler in logging.getLogger(name).handlers}
    for handler in handlers:
        # Those of other kinds were made by somebody else, who knows what for.
        if type(handler) is not logging.StreamHandler:
            continue
        handler.addFilter(InTrace())
        if form == "json" or (form == "auto" and not handler.stream.isatty()):
            handler.setFormatter(OneObject())
            # Python prints warnings in two lines.
            logging.captureWarnings(True)
