"""What an operator sees of a running policyd: one table of metrics, the tallies behind it, the stages of a decision.

Rules: a metric that is not in ``METRICS`` does not exist: tallies, readings, ``/metrics``, OTLP and the reference page
all go by this table; units are base units (seconds, bytes); every label has a bounded set of values, and the tenant is
one only when ``telemetry.tenant_label`` asks; nothing of a request's headers or body is ever a label or an attribute.
On the path of a decision only plain numbers are changed. What exists already (queues, counts, health) is read when
somebody collects. It refuses to know who collects: OpenTelemetry is behind ``connectors``, and not imported here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Final, Literal, NamedTuple, Protocol

Kind = Literal["counter", "gauge", "histogram"]
Sample = tuple[tuple[str, ...], float]
"""The values of the labels, in the order of the table, and the value."""
Reading = Callable[[], Iterable[Sample]]

_UNIT_SUFFIXES: Final = {"s": "_seconds", "By": "_bytes"}


class Metric(NamedTuple):
    """One row of the table. ``unit`` is UCUM as OpenTelemetry writes it; braces name what is counted."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str
    bounds: tuple[float, ...] = ()
    across: Literal["sum", "max", "min"] = "sum"
    """How the figures of several processes become that of the server."""

    @property
    def prometheus(self) -> str:
        """The name at ``/metrics``; a histogram has ``_bucket``, ``_sum`` and ``_count`` behind it."""
        suffix = "_total" if self.kind == "counter" else ""
        return self.name.replace(".", "_") + _UNIT_SUFFIXES.get(self.unit, "") + suffix


_LATENCY_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_BATCH: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)

METRICS: Final = (
    Metric(
        "policyd.decisions",
        "counter",
        "{decision}",
        ("outcome", "denied_by", "mode"),
        "Decisions. `outcome` is allow, deny or error; `denied_by` says why a deny, or the code of the error",
    ),
    Metric(
        "policyd.decision.duration",
        "histogram",
        "s",
        ("outcome",),
        "Time of a decision from the parsed request to the durable answer",
        _LATENCY_S,
    ),
    Metric("policyd.requests", "counter", "{request}", ("status",), "Requests answered, by HTTP status"),
    Metric("policyd.requests.in_flight", "gauge", "{request}", (), "Requests in progress, health and metrics left out"),
    Metric(
        "policyd.requests.refused", "counter", "{request}", ("code",), "Requests refused at the door, before any work"
    ),
    Metric("policyd.problems", "counter", "{problem}", ("code",), "Problem documents answered, by code"),
    Metric(
        "policyd.sheets",
        "counter",
        "{sheet}",
        ("result",),
        "Sheets asked for: found in memory, made by the engine, joined to one being made, or refused by a limit",
    ),
    Metric("policyd.sheets.failed", "counter", "{sheet}", (), "Sheets made with a failed evaluation, kept briefly"),
    Metric("policyd.sheets.held", "gauge", "{sheet}", (), "Sheets in memory"),
    Metric("policyd.sheets.in_progress", "gauge", "{sheet}", (), "Sheets being made"),
    Metric("policyd.sheet.duration", "histogram", "s", (), "Time to make one sheet", _LATENCY_S),
    Metric(
        "policyd.sheet.questions",
        "counter",
        "{question}",
        ("answered_by",),
        "Questions of the sheets that were made: answered by the engine, or from memory",
    ),
    Metric("policyd.engine.timeouts", "counter", "{evaluation}", (), "Evaluations that missed the deadline"),
    Metric(
        "policyd.engine.worker.ends",
        "counter",
        "{worker}",
        ("reason",),
        "Worker processes of the engine that ended: killed for a timeout, crashed, or recycled after long use",
    ),
    Metric("policyd.engine.workers", "gauge", "{worker}", (), "Worker processes of the engine that run"),
    Metric("policyd.commit.batch", "histogram", "{entry}", (), "Entries in one transaction of the log", _BATCH),
    Metric(
        "policyd.commit.duration",
        "histogram",
        "s",
        (),
        "Time from handing a batch over until it is durable",
        _LATENCY_S,
    ),
    Metric("policyd.commit.queue", "gauge", "{entry}", (), "Entries that wait to be durable"),
    Metric("policyd.log.entries", "counter", "{entry}", (), "Entries in the log, earlier runs included", across="max"),
    Metric("policyd.log.healthy", "gauge", "", (), "1 while the log takes entries, else 0", across="min"),
    Metric(
        "policyd.webhook.attempts",
        "counter",
        "{attempt}",
        ("receiver", "result"),
        "Attempts to tell a receiver of an event: delivered, failed, refused by a 4xx; and events given up",
    ),
    Metric(
        "policyd.webhook.failing",
        "gauge",
        "s",
        ("receiver",),
        "How long a receiver of webhooks has not taken what waits for it; 0 while it does",
    ),
    Metric(
        "policyd.log.cosigned",
        "gauge",
        "{entry}",
        (),
        "Entries that a witness has cosigned, of the one that has come furthest; 0 without witnesses",
        across="max",
    ),
    Metric(
        "policyd.witness.failures",
        "counter",
        "{request}",
        ("reason",),
        "Witnesses that did not cosign: unreachable, refused, or contradicted, when one has seen another history",
    ),
    Metric(
        "policyd.snapshot.info",
        "gauge",
        "",
        ("policy_digest", "policy_commit", "fleet_digest", "fleet_commit"),
        "1 for the revisions in force",
        across="max",
    ),
    Metric("policyd.facts.age", "gauge", "s", (), "Time since the facts were last read", across="max"),
    Metric(
        "policyd.facts.observed.age",
        "gauge",
        "s",
        (),
        "Time since the facts were observed, when they say so",
        across="max",
    ),
    Metric(
        "policyd.ready",
        "gauge",
        "",
        ("part",),
        "1 while that part lets a decision through (server, snapshot, log, facts, revisions, engine), else 0",
        across="min",
    ),
    Metric("policyd.build.info", "gauge", "", ("version", "python", "engine"), "1 for what is running", across="max"),
    Metric("process.resident_memory", "gauge", "By", (), "Memory of the server process, its workers left out"),
    Metric("process.open_fds", "gauge", "{descriptor}", (), "Open file descriptors"),
    Metric("process.max_fds", "gauge", "{descriptor}", (), "File descriptors that may be open", across="min"),
    Metric("process.cpu", "counter", "s", (), "Processor time of the server process"),
    Metric("process.start_time", "gauge", "s", (), "When the process started, in seconds since 1970", across="min"),
)

BY_NAME: Final[Mapping[str, Metric]] = {metric.name: metric for metric in METRICS}


class Buckets:
    """A histogram of our own: OpenTelemetry's ``record`` takes some 20 microseconds, this one less than one."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def record(self, value: float) -> None:
        """Count one value; a bound belongs to its bucket."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Histogram:
    """The buckets of one metric, for each value of its label."""

    __slots__ = ("metric", "series")

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.series: dict[tuple[str, ...], Buckets] = {} if metric.labels else {(): Buckets(metric.bounds)}

    def record(self, value: float, labels: tuple[str, ...] = ()) -> None:
        """Count one value."""
        found = self.series.get(labels)
        if found is None:
            found = self.series[labels] = Buckets(self.metric.bounds)
        found.record(value)


class Stages(Protocol):
    """The stages of one decision, told as they end. Nothing that is told here may come from a header or a body."""

    def ended(self, stage: str, detail: str = "") -> None:
        """This stage ends now; the next one begins."""

    def close(self, outcome: str, code: str = "") -> None:
        """The decision is over."""


class _NoStages:
    """Nobody listens: no span is made, no clock is read."""

    __slots__ = ()

    def ended(self, stage: str, detail: str = "") -> None:
        """Nothing."""

    def close(self, outcome: str, code: str = "") -> None:
        """Nothing."""


NO_STAGES: Final[Stages] = _NoStages()


class RequestTrace(Protocol):
    """One request, which somebody may follow."""

    @property
    def sampled(self) -> bool:
        """Whether it is followed; when not, only ``end`` needs to be told."""

    def admitted(self) -> None:
        """The door let it in."""

    def end(self, name: str, status: int, attributes: Mapping[str, str]) -> None:
        """It was answered."""


class Tracing(Protocol):
    """Follows requests and decisions. Decided once at the start: there is one, or there is none."""

    def request(self, headers: Mapping[str, str]) -> RequestTrace:
        """A request begins; ``headers`` are ``traceparent`` and ``tracestate`` and no others."""

    def decision(self, decision_id: str) -> Stages:
        """A decision begins, inside the current request when there is one."""


class Exposition(Protocol):
    """Writes down all metrics for whoever scrapes."""

    def render(self, accept: str) -> tuple[bytes, str]:
        """The text, and its content type; ``accept`` as the scraper sent it."""


class TraceIds(NamedTuple):
    """Where a line of the log belongs, in hexadecimal digits as W3C writes them."""

    trace_id: str
    span_id: str


CURRENT: Final[ContextVar[TraceIds | None]] = ContextVar("policyd_trace", default=None)
"""The request that is being followed here, for the log."""


class Telemetry:
    """The tallies of one process, and where the other numbers are read. Changed by one event loop, read by anybody."""

    def __init__(self, *, metrics: bool = True, tenant_label: bool = False, tracing: Tracing | None = None) -> None:
        self.metrics = metrics
        self.tenant_label = tenant_label
        self.tracing = tracing
        self.decisions: Counter[tuple[str, ...]] = Counter()
        self.requests: Counter[int] = Counter()
        # A zero that is seen before the first refusal: a rate needs two values, and an alert the first one.
        self.refused: Counter[str] = Counter({"overload": 0})
        self.problems: Counter[str] = Counter()
        self.witness_failures: Counter[str] = Counter({"unreachable": 0, "refused": 0, "contradicted": 0})
        self.cosigned_entries = 0
        self.histograms = {m.name: Histogram(m) for m in METRICS if m.kind == "histogram"}
        self._duration = self.histograms["policyd.decision.duration"]
        self._readings: dict[str, Reading] = {}
        self.observe("policyd.decisions", lambda: list(self.decisions.items()))
        self.observe("policyd.requests", lambda: [((str(key),), n) for key, n in list(self.requests.items())])
        self.observe("policyd.requests.refused", lambda: [((key,), n) for key, n in list(self.refused.items())])
        self.observe("policyd.problems", lambda: [((key,), n) for key, n in list(self.problems.items())])

        failures = self.witness_failures
        self.observe("policyd.witness.failures", lambda: [((key,), n) for key, n in list(failures.items())])
        self.observe("policyd.log.cosigned", lambda: [((), self.cosigned_entries)])

    def labels_of(self, metric: Metric) -> tuple[str, ...]:
        """The labels of a metric as they are now: decisions have the tenant too when that is asked for."""
        asked = self.tenant_label and metric.name == "policyd.decisions"
        return (*metric.labels, "tenant") if asked else metric.labels

    def observe(self, name: str, reading: Reading) -> None:
        """Where the values of a counter or gauge of the table are read when somebody collects."""
        if BY_NAME[name].kind == "histogram":
            raise ValueError(f"{name} is a histogram: it is recorded, not read")
        self._readings[name] = reading

    def read(self, metric: Metric) -> Iterable[Sample]:
        """The values now; none while nobody gives any."""
        reading = self._readings.get(metric.name)
        return () if reading is None else reading()

    def stages(self, decision_id: str) -> Stages:
        """The stages of a decision that begins now."""
        return NO_STAGES if self.tracing is None else self.tracing.decision(decision_id)

    def decided(self, outcome: str, denied_by: str, mode: str, tenant: str, duration_s: float) -> None:
        """One decision is answered, or ended in an error with the code ``denied_by``."""
        if self.metrics:
            key = (outcome, denied_by, mode, tenant) if self.tenant_label else (outcome, denied_by, mode)
            self.decisions[key] += 1
            self._duration.record(duration_s, (outcome,))

    def answered(self, status: int, code: str | None) -> None:
        """One request is answered; with a problem document when there is a code."""
        if self.metrics:
            self.requests[status] += 1
            if code is not None:
                self.problems[code] += 1

    def turned_away(self, code: str) -> None:
        """One request is refused at the door."""
        if self.metrics:
            self.refused[code] += 1

    def sheet_made(self, duration_s: float) -> None:
        """One sheet is made."""
        if self.metrics:
            self.histograms["policyd.sheet.duration"].record(duration_s)

    def committed(self, entries: int, duration_s: float) -> None:
        """One batch of the log is durable, or failed."""
        if self.metrics:
            self.histograms["policyd.commit.batch"].record(entries)
            self.histograms["policyd.commit.duration"].record(duration_s)

    def cosigned(self, entries: int) -> None:
        """A witness has cosigned so many entries."""
        self.cosigned_entries = max(self.cosigned_entries, entries)

    def witness_failed(self, reason: str) -> None:
        """A witness did not cosign."""
        self.witness_failures[reason] += 1
