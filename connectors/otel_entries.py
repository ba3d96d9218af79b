"""Entries of the decision log as OTLP log records, over HTTP to a collector.

    timestamp    when it was recorded              event_name   policyd.decision, policyd.refusal, …
    severity     INFO, WARN for refusals, ERROR    body         the entry as recorded, without the salt of its hash
    attributes   policyd.tenant, policyd.outcome, … and policyd.log.origin, .index, .leaf_hash

Where to, with which headers, certificates and timeout is for the standard ``OTEL_*`` variables, unless an endpoint is
named; the SDK repeats what a collector was too busy for, within that timeout.

Rules: a batch is delivered or it is an error; nothing is queued, so nothing is lost with the process.
It refuses: to drop; a batch that the collector does not take ends the export, which can go on there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExportResult
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from policyd.errors import ExportFailed
from policyd.ports import CollectedEntry

SCOPE: Final = "policyd.audit"
_SEVERITIES: Final = {"error": SeverityNumber.ERROR, "refusal": SeverityNumber.WARN}


class OtlpCollector:
    """``policyd.ports.Collector``: sends batches of entries, one after the other."""

    def __init__(self, endpoint: str | None, version: str) -> None:
        self._exporter = OTLPLogExporter(endpoint=endpoint)
        ours = {"service.name": "policyd", "service.version": version}
        self._resource = Resource.create(ours).merge(OTELResourceDetector().detect())
        self._scope = InstrumentationScope(SCOPE, version)

    def send(self, entries: Sequence[CollectedEntry]) -> None:
        """Deliver a batch."""
        with _heard() as words:
            result = self._exporter.export([self._record(entry) for entry in entries])
        if result is not LogRecordExportResult.SUCCESS:
            raise ExportFailed(f"the collector did not take a batch: {'; '.join(words) or 'it gave no reason'}")

    def close(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # the SDK has no types for it

    def _record(self, entry: CollectedEntry) -> ReadableLogRecord:
        severity = _SEVERITIES.get(entry.kind, SeverityNumber.INFO)
        record = LogRecord(
            timestamp=entry.time_us * 1_000,
            observed_timestamp=entry.time_us * 1_000,
            severity_number=severity,
            severity_text=severity.name,
            body=dict(entry.body),
            attributes=dict(entry.attributes),
            event_name=f"policyd.{entry.kind}",
        )
        return ReadableLogRecord(record, self._resource, self._scope)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What the SDK says of a delivery, which it tells to its logger and to nobody else."""
    words: list[str] = []

    class Hearing(logging.Handler):
        """Takes notes."""

        def emit(self, record: logging.LogRecord) -> None:
            """Take one."""
            words.append(record.getMessage())

    logger, hearing = logging.getLogger("opentelemetry.exporter.otlp"), Hearing(logging.WARNING)
    propagated = logger.propagate
    logger.addHandler(hearing)
    logger.propagate = False
    try:
        yield words
    finally:
        logger.removeHandler(hearing)
        logger.propagate = propagated
