"""The server's own log on stderr, as text for a person or as JSON for a collector.

Rules: one record is one line, whatever is in it; a record that belongs to a followed request carries the ids of its
trace; nothing is added that the record does not say.
"""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

from policyd.telemetry import CURRENT

if TYPE_CHECKING:
    from policyd.settings import TelemetrySettings


class _Line(logging.Formatter):
    """The parts that both forms have."""

    def parts(self, record: logging.LogRecord) -> dict[str, str]:
        """What there is to say about a record, in order."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        ids = CURRENT.get()
        found = {
            "time": f"{seconds}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "trace_id": ids.trace_id if ids else "",
            "span_id": ids.span_id if ids else "",
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return {name: value for name, value in found.items() if value}


class JsonLine(_Line):
    """A record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return json.dumps(self.parts(record), ensure_ascii=False)


class TextLine(_Line):
    """A record as words; only a trace of the inside takes lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        parts = self.parts(record)
        message = parts.pop("message", "").replace("\r", "\\r").replace("\n", "\\n")
        trace = f" trace_id={parts['trace_id']}" if "trace_id" in parts else ""
        inside = f"\n{parts['exception']}" if "exception" in parts else ""
        return f"{parts['time']} {parts['level']} {parts['logger']}: {message}{trace}{inside}"


def start_logs(settings: TelemetrySettings) -> None:
    """Write the log to stderr from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLine() if settings.log_format == "json" else TextLine())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())
