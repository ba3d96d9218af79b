"""One record is one line, in words or in JSON, with the trace that it belongs to."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from policyd.cli.logs import JsonLine, TextLine
from policyd.telemetry import CURRENT, TraceIds


def record(message: str, *arguments: object, failed: bool = False) -> logging.LogRecord:
    exc_info = None
    if failed:
        try:
            raise ValueError("of the inside")
        except ValueError:
            exc_info = sys.exc_info()
    found = logging.LogRecord("policyd.services.commit", logging.ERROR, __file__, 1, message, arguments, exc_info)
    found.created, found.msecs = 1_700_000_000.25, 250.0
    return found


@pytest.fixture
def traced() -> object:
    token = CURRENT.set(TraceIds("a" * 32, "b" * 16))
    yield
    CURRENT.reset(token)


def test_json_has_every_part_once() -> None:
    assert json.loads(JsonLine().format(record("the log %s\nforged", "broke"))) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "error",
        "logger": "policyd.services.commit",
        "message": "the log broke\nforged",
    }
    assert "\n" not in JsonLine().format(record("two\nlines", failed=True))
    assert "ValueError: of the inside" in json.loads(JsonLine().format(record("x", failed=True)))["exception"]


def test_text_is_one_line_unless_it_shows_the_inside() -> None:
    line = TextLine().format(record("the log %s", "broke\n2023 info forged"))
    assert line == "2023-11-14T22:13:20.250Z error policyd.services.commit: the log broke\\n2023 info forged"
    assert TextLine().format(record("x", failed=True)).splitlines()[-1] == "ValueError: of the inside"


@pytest.mark.usefixtures("traced")
def test_a_line_of_a_followed_request_has_its_trace() -> None:
    found = json.loads(JsonLine().format(record("x")))
    assert (found["trace_id"], found["span_id"]) == ("a" * 32, "b" * 16)
    assert TextLine().format(record("x")).endswith(f" trace_id={'a' * 32}")
