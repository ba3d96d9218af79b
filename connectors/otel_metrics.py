"""The metrics of ``policyd.telemetry`` as OpenTelemetry instruments, and their text for Prometheus.

Rules: there is an instrument for every row of the table, and no other; counters and gauges are observable, so that
nothing is called while decisions are made. Histograms are tallied by policyd itself, because ``Histogram.record`` takes
some 20 microseconds of a decision that takes 300; the SDK has no observable histogram, so a reader adds theirs to what
it has collected, as a whole and cumulative, before it goes out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    MetricReader,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.metrics.export import Metric as MetricData
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from policyd.telemetry import METRICS, Buckets, Histogram, Metric, Telemetry

SCOPE: Final = "policyd"
TEXT_ONLY: Final = "text/plain"


class PrometheusText:
    """``policyd.telemetry.Exposition`` on the official exporter, with a registry of its own."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._registry = CollectorRegistry()
        reader = _PrometheusReader(telemetry, self._registry)
        self._provider = meter_provider(telemetry, [reader], Resource.get_empty())

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text of all metrics, in the format that ``accept`` prefers."""
        encoder, content_type = choose_encoder(accept or TEXT_ONLY)
        return encoder(self._registry), content_type


def meter_provider(telemetry: Telemetry, readers: Sequence[MetricReader], resource: Resource) -> MeterProvider:
    """A provider with an instrument for each counter and gauge of the table."""
    provider = MeterProvider(readers, resource, shutdown_on_exit=False)
    meter = provider.get_meter(SCOPE)
    for metric in METRICS:
        if metric.kind != "histogram":
            _instrument(meter, metric, telemetry)
    return provider


def _instrument(meter: Meter, metric: Metric, telemetry: Telemetry) -> None:
    labels = telemetry.labels_of(metric)

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, dict(zip(labels, given, strict=True))) for given, value in telemetry.read(metric)]

    make = meter.create_observable_counter if metric.kind == "counter" else meter.create_observable_gauge
    make(metric.name, [observe], metric.unit, metric.meaning)


class WithHistograms:
    """Adds the histograms of policyd to what a reader has collected."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._histograms = tuple(telemetry.histograms.values())
        self._started_ns = time.time_ns()

    def __call__(self, data: MetricsData) -> MetricsData:
        """The same with the histograms in our scope."""
        first, *others = data.resource_metrics
        now_ns = time.time_ns()
        made = [self._metric(histogram, now_ns) for histogram in self._histograms if histogram.series]
        # One scope, once: the encoder of OTLP keeps the last of two that are equal and drops the other.
        theirs = [metric for scope in first.scope_metrics for metric in scope.metrics]
        scopes = [ScopeMetrics(InstrumentationScope(SCOPE), [*theirs, *made], "")]
        return MetricsData([ResourceMetrics(first.resource, scopes, first.schema_url), *others])

    def _metric(self, histogram: Histogram, now_ns: int) -> MetricData:
        metric = histogram.metric
        points = [self._point(metric, labels, buckets, now_ns) for labels, buckets in list(histogram.series.items())]
        data = HistogramData(points, AggregationTemporality.CUMULATIVE)
        return MetricData(metric.name, metric.meaning, metric.unit, data)

    def _point(self, metric: Metric, labels: tuple[str, ...], buckets: Buckets, now_ns: int) -> HistogramDataPoint:
        counts = list(buckets.counts)
        return HistogramDataPoint(
            attributes=dict(zip(metric.labels, labels, strict=True)),
            start_time_unix_nano=self._started_ns,
            time_unix_nano=now_ns,
            count=sum(counts),
            sum=buckets.total,
            bucket_counts=counts,
            explicit_bounds=list(metric.bounds),
            min=0.0,
            max=0.0,
        )


class _PrometheusReader(PrometheusMetricReader):
    """The official reader, with our histograms."""

    def __init__(self, telemetry: Telemetry, registry: CollectorRegistry) -> None:
        super().__init__(disable_target_info=True, scope_info_enabled=False, registry=registry)
        self._with_histograms = WithHistograms(telemetry)

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **options: Any) -> None:
        super()._receive_metrics(self._with_histograms(metrics_data), timeout_millis, **options)
