"""The figures of several processes as those of one server: told over the link, joined by the rule of each metric.

    API process ──ask──► supervisor ──ask──► every API process ──figures──► supervisor ──whole──► API process

Rules: the table of metrics says how figures are joined; what a process has counted stays counted when it ends, so that
a counter of the server never goes back; what is told is checked as if a stranger had said it.
It refuses: figures that are not of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from policyd.errors import AuditError
from policyd.telemetry import BY_NAME, METRICS, Buckets, Metric, Telemetry

Labels = tuple[str, ...]
Values = tuple[float, ...]
"""One number of a counter or gauge; of a histogram the counts of its buckets, and the sum behind them."""
Figures = Mapping[str, Mapping[Labels, Values]]
"""By name of the metric and by the values of its labels."""

SERIES_MAX: Final = 100_000
_JOIN: Final[Mapping[str, Callable[[Iterable[float]], float]]] = {"sum": sum, "max": max, "min": min}


def figures_of(telemetry: Telemetry) -> Figures:
    """What a process would show now."""
    found: dict[str, dict[Labels, Values]] = {}
    for metric in METRICS:
        if metric.kind == "histogram":
            series = list(telemetry.histograms[metric.name].series.items())
            found[metric.name] = {labels: (*buckets.counts, buckets.total) for labels, buckets in series}
        else:
            found[metric.name] = {labels: (value,) for labels, value in telemetry.read(metric)}
    return found


def figures_json(figures: Figures) -> dict[str, Any]:
    """As JSON values."""
    return {name: [[labels, values] for labels, values in series.items()] for name, series in figures.items()}


def figures_from_json(document: Any) -> Figures:
    """Back again. Raises ``AuditError``, which ends the link, for what ``figures_json`` cannot have written."""
    try:
        found = {name: _series(BY_NAME[name], series) for name, series in document.items()}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise AuditError(f"the figures of a process cannot be read: {error!r}") from None
    if sum(map(len, found.values())) > SERIES_MAX:
        raise AuditError(f"a process tells more than {SERIES_MAX} figures")
    return found


def _series(metric: Metric, told: list[Any]) -> dict[Labels, Values]:
    return {_labels(labels): _values(metric, values) for labels, values in told}


def _labels(given: list[str]) -> Labels:
    if not all(type(label) is str for label in given):
        raise ValueError("a label is no text")
    return tuple(given)


def _values(metric: Metric, given: list[float]) -> Values:
    wanted = len(metric.bounds) + 2 if metric.kind == "histogram" else 1
    if len(given) != wanted or not all(type(value) in (int, float) for value in given):
        raise ValueError(f"{metric.name} has no such values")
    return tuple(given)


def joined(all_figures: Iterable[Figures]) -> Figures:
    """The figures of several processes as one."""
    given: dict[str, dict[Labels, list[Values]]] = {}
    for figures in all_figures:
        for name, series in figures.items():
            for labels, values in series.items():
                given.setdefault(name, {}).setdefault(labels, []).append(values)
    return {
        name: {
            labels: tuple(_JOIN[BY_NAME[name].across](column) for column in zip(*rows, strict=True))
            for labels, rows in series.items()
        }
        for name, series in given.items()
    }


@dataclass
class ServerFigures:
    """All figures of a server of several processes, where its supervisor keeps them."""

    own: Telemetry
    _told: dict[int, Figures] = field(default_factory=dict)
    _ended: Figures = field(default_factory=dict)

    def told(self, number: int, figures: Figures) -> None:
        """What a process says of itself."""
        self._told[number] = figures

    def ended(self, number: int) -> None:
        """A process is gone: what it counted is kept, what it held is not."""
        last = self._told.pop(number, {})
        counted = {name: series for name, series in last.items() if _stays(BY_NAME[name])}
        self._ended = joined([self._ended, counted])

    def whole(self) -> Figures:
        """Those of all processes, as they were told last."""
        return joined([figures_of(self.own), self._ended, *self._told.values()])


def _stays(metric: Metric) -> bool:
    return metric.kind != "gauge" and metric.across == "sum"


class Shown:
    """A telemetry that shows figures which came from elsewhere."""

    def __init__(self, like: Telemetry) -> None:
        self._figures: Figures = {}
        self.telemetry = Telemetry(metrics=like.metrics, tenant_label=like.tenant_label)
        for metric in METRICS:
            if metric.kind != "histogram":
                self.telemetry.observe(metric.name, partial(self._samples, metric.name))

    def _samples(self, name: str) -> list[tuple[Labels, float]]:
        return [(labels, values[0]) for labels, values in self._figures.get(name, {}).items()]

    def show(self, figures: Figures) -> None:
        """From now on these."""
        self._figures = figures
        for name, histogram in self.telemetry.histograms.items():
            series = {}
            for labels, (*counts, total) in figures.get(name, {}).items():
                series[labels] = buckets = Buckets(histogram.metric.bounds)
                buckets.counts, buckets.total = [int(count) for count in counts], total
            histogram.series = series
