"""The log is one JSON object a line where nobody reads it on a terminal, and names the trace of a request."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextvars import ContextVar

import pytest
from opentelemetry.trace import INVALID_SPAN

from text2image.observe import logs, tracing


class Terminal(io.StringIO):
    """A stream that says that somebody is looking."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests without a task of their own leave their traces behind."""
    monkeypatch.setattr(tracing, "_request", ContextVar("request", default=INVALID_SPAN))


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """BentoML's logger, and none with handlers, however they were left; warnings go where they went afterwards."""
    for name in logs._LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
    logger = logging.getLogger("bentoml")
    former = logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.setLevel(former)
    logging.captureWarnings(False)


def written(
    logger: logging.Logger, form: logs.Format, stream: io.StringIO | None = None
) -> io.StringIO:
    """What the logger writes from now on, in a form."""
    stream = stream or io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s%(trace_msg)s"))
    logger.addHandler(handler)
    logs.set_up(form)
    return stream


def test_a_record_is_one_line_of_json_whatever_is_in_it(logger: logging.Logger) -> None:
    stream = written(logger, "json")
    try:
        raise ValueError("a\nb")
    except ValueError:
        logger.exception("two\nlines", extra={"code": "OK"})
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"], record["code"]) == ("ERROR", "bentoml", "OK")
    assert record["message"] == "two\nlines"
    assert "ValueError" in record["exc_info"]
    assert "trace_id" not in record
    assert next(iter(record)) == "time"


@pytest.mark.parametrize(("form", "is_json"), [("text", False), ("json", True), ("auto", False)])
def test_on_a_terminal_it_is_text_unless_json_is_asked_for(
    logger: logging.Logger, form: logs.Format, is_json: bool
) -> None:
    stream = written(logger, form, Terminal())
    logger.warning("hello")
    assert stream.getvalue().startswith("{") == is_json
    assert "hello" in stream.getvalue()


@pytest.mark.parametrize(("form", "is_json"), [("text", False), ("json", True), ("auto", True)])
def test_elsewhere_it_is_json_unless_text_is_asked_for(
    logger: logging.Logger, form: logs.Format, is_json: bool
) -> None:
    stream = written(logger, form)
    logger.warning("hello")
    assert stream.getvalue().startswith("{") == is_json


@pytest.mark.parametrize("form", ["text", "json"])
async def test_a_line_names_the_trace_that_it_belongs_to(
    logger: logging.Logger, form: logs.Format
) -> None:
    stream = written(logger, form)
    trace_id = tracing.begin({})
    logger.warning("hello")
    assert trace_id in stream.getvalue()


def test_handlers_of_others_keep_their_form(logger: logging.Logger) -> None:
    class Foreign(logging.StreamHandler[io.StringIO]):
        """Somebody else's, who knows what for."""

    stream = io.StringIO()
    logger.addHandler(Foreign(stream))
    logs.set_up("json")
    logger.warning("hello")
    assert stream.getvalue() == "hello\n"
