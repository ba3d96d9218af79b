"""Traces, metrics and logs to an OpenTelemetry collector, over OTLP/HTTP.

Rules: started only for the signals that ``connectors.otel_signals`` finds asked for; where to, with which headers,
certificates, sampler and intervals is for the standard ``OTEL_*`` variables, which the SDK reads; everything is sent
from threads of the SDK, whose queues are bounded: a collector that is gone costs telemetry and never a decision.
It refuses to wait for long at the end, and to send what its own sender logs.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final
from uuid import uuid4

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from connectors.otel_metrics import WithHistograms, meter_provider
from connectors.otel_signals import sampled_share
from connectors.otel_traces import OtelTracing
from policyd.telemetry import CURRENT, Telemetry

CLOSE_TIMEOUT_S: Final = 5.0
"""Longest wait at the end for a collector that does not answer."""
_SENDERS: Final = ("opentelemetry", "urllib3", "requests")
_SEVERITIES: Final = {
    logging.DEBUG: SeverityNumber.DEBUG,
    logging.INFO: SeverityNumber.INFO,
    logging.WARNING: SeverityNumber.WARN,
    logging.ERROR: SeverityNumber.ERROR,
    logging.CRITICAL: SeverityNumber.FATAL,
}
_log: Final = logging.getLogger(__name__)


class Exports:
    """What leaves the process. Made before anything is served, closed after everything has ended."""

    def __init__(self, telemetry: Telemetry, signals: Collection[str]) -> None:
        resource = _resource()
        self._closers: list[Callable[[], object]] = []
        self._handler: OtlpLogHandler | None = None
        if "traces" in signals:
            tracer = TracerProvider(_sampler(os.environ), resource, shutdown_on_exit=False)
            processor = BatchSpanProcessor(OTLPSpanExporter())
            tracer.add_span_processor(processor)
            telemetry.tracing = OtelTracing(tracer, processor)
            self._closers.append(tracer.shutdown)
        if "metrics" in signals:
            reader = _PeriodicReader(telemetry, OTLPMetricExporter())
            self._closers.append(meter_provider(telemetry, [reader], resource).shutdown)
        if "logs" in signals:
            logs = LoggerProvider(resource, shutdown_on_exit=False)
            logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
            self._handler = OtlpLogHandler(logs)
            logging.getLogger().addHandler(self._handler)
            self._closers.append(logs.shutdown)

    def close(self) -> None:
        """Send what waits, and end; takes ``CLOSE_TIMEOUT_S`` at the longest."""
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        # Threads that nobody waits for: the SDK's own shutdown waits as long as its exporter tries.
        threads = [threading.Thread(target=closer, daemon=True) for closer in self._closers]
        for thread in threads:
            thread.start()
        until = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            _log.warning("the collector did not take the last telemetry within %d s", CLOSE_TIMEOUT_S)


class OtlpLogHandler(logging.Handler):
    """Lines of the log as log records, in the trace of the request that they belong to."""

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line to the queue of the SDK."""
        if record.name.partition(".")[0] in _SENDERS:
            return
        attributes: dict[str, str] = {}
        if record.exc_info and record.exc_info[0] is not None:
            attributes["exception.type"] = record.exc_info[0].__name__
            attributes["exception.stacktrace"] = "".join(traceback.format_exception(*record.exc_info))
        line = LogRecord(
            timestamp=int(record.created * 1_000_000_000),
            observed_timestamp=time.time_ns(),
            context=_context(),
            severity_text=record.levelname,
            severity_number=_SEVERITIES.get(record.levelno, SeverityNumber.UNSPECIFIED),
            body=record.getMessage(),
            attributes=attributes,
        )
        self._provider.get_logger(record.name).emit(line)


def _context() -> Context:
    ids = CURRENT.get()
    if ids is None:
        return Context()
    span = SpanContext(int(ids.trace_id, 16), int(ids.span_id, 16), is_remote=False, trace_flags=TraceFlags(1))
    return set_span_in_context(NonRecordingSpan(span), Context())


class _PeriodicReader(PeriodicExportingMetricReader):
    """The official reader, with our histograms."""

    def __init__(self, telemetry: Telemetry, exporter: MetricExporter) -> None:
        self._with_histograms = WithHistograms(telemetry)
        super().__init__(exporter)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **options: Any) -> None:
        super()._receive_metrics(self._with_histograms(metrics_data), timeout_millis, **options)


def _sampler(environment: Mapping[str, str]) -> Sampler | None:
    """One request in so many, unless its caller decided already; None when ``OTEL_TRACES_SAMPLER`` names a sampler."""
    if environment.get("OTEL_TRACES_SAMPLER"):
        return None
    return ParentBased(TraceIdRatioBased(sampled_share(environment)))


class _Speaker(Resource):
    """A resource that knows its hash: the exporter asks each span for it, and the SDK's writes JSON every time."""

    def __hash__(self) -> int:
        found: int | None = self.__dict__.get("_hash")
        if found is None:
            found = self.__dict__["_hash"] = super().__hash__()
        return found


def _resource() -> Resource:
    """Who speaks; ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` have the last word."""
    try:
        running = version("policyd")
    except PackageNotFoundError:
        running = "0"
    ours = {"service.name": "policyd", "service.version": running, "service.instance.id": str(uuid4())}
    merged = Resource.create(ours).merge(OTELResourceDetector().detect())
    return _Speaker(merged.attributes, merged.schema_url)
