"""A real OTLP/HTTP receiver gets what a real server sends: spans, metrics and log lines, and nothing unasked."""

from __future__ import annotations

import gzip
import logging
import threading
import time
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any, ClassVar

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from connectors import otel_export
from connectors.otel_signals import exported_signals, sampled_share
from policyd.errors import ConfigError
from policyd.telemetry import METRICS

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
SECRET = "Bearer tell-nobody-anything"


class Receiver:
    """What a collector is to policyd: three paths that take protobuf."""

    REQUESTS: ClassVar = {
        "/v1/traces": ExportTraceServiceRequest,
        "/v1/metrics": ExportMetricsServiceRequest,
        "/v1/logs": ExportLogsServiceRequest,
    }

    def __init__(self) -> None:
        self.taken: dict[str, list[Any]] = {path: [] for path in self.REQUESTS}
        self.bytes: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                message = receiver.REQUESTS[self.path]()
                message.ParseFromString(body)
                receiver.taken[self.path].append(message)
                receiver.bytes.append(body)
                receiver.headers.append(dict(self.headers))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def spans(self) -> list[Any]:
        return [s for m in self.taken["/v1/traces"] for r in m.resource_spans for c in r.scope_spans for s in c.spans]

    @property
    def metrics(self) -> list[Any]:
        taken = self.taken["/v1/metrics"]
        return [s for m in taken for r in m.resource_metrics for c in r.scope_metrics for s in c.metrics]

    @property
    def lines(self) -> list[Any]:
        taken = self.taken["/v1/logs"]
        return [s for m in taken for r in m.resource_logs for c in r.scope_logs for s in c.log_records]


def attributes(holder: Any) -> dict[str, Any]:
    """The attributes of a span, a point or a resource."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


@pytest.fixture
def receiver() -> Generator[Receiver, None, None]:
    found = Receiver()
    yield found
    found.close()


@pytest.fixture
def exporting(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """The environment asks for everything, soon."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.address)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-key=of-the-collector")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "60000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "policyd-of-the-test")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    return receiver


def test_a_decision_is_one_trace_of_its_stages(
    exporting: Receiver, serving_with: Callable[..., Any], bank_chat: dict[str, Any]
) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "Authorization": SECRET}
    with serving_with() as server:
        first = server.client.post("/v1/decisions", json=bank_chat, headers=headers)
        again = server.client.post("/v1/decisions", json=bank_chat)
        assert server.client.get("/livez").status_code == 200
    decision_id = first.headers["x-policyd-decision-id"]
    trace = [span for span in exporting.spans if span.trace_id.hex() == TRACE_ID]
    by_name = {span.name: span for span in trace}
    assert set(by_name) == {
        "POST /v1/decisions", "gate", "read", "decision", "normalise", "sheet", "decide", "commit", "answer",
    }  # fmt: skip
    assert len(trace) == 9
    request, decision = by_name["POST /v1/decisions"], by_name["decision"]
    assert request.parent_span_id.hex() == PARENT_ID
    assert {by_name[name].parent_span_id for name in ("gate", "read", "decision")} == {request.span_id}
    stages = [by_name[name] for name in ("normalise", "sheet", "decide", "commit", "answer")]
    assert {span.parent_span_id for span in stages} == {decision.span_id}
    assert attributes(decision) == {"policyd.decision.id": decision_id, "policyd.outcome": "allow"}
    assert attributes(request) == {
        "http.request.method": "POST", "http.route": "/v1/decisions", "http.response.status_code": 200,
        "policyd.decision.id": decision_id, "policyd.principal": "local",
        "policyd.request.id": first.headers["x-request-id"],
    }  # fmt: skip
    # The stages follow each other without a gap, and lie inside the decision.
    assert all(one.end_time_unix_nano == two.start_time_unix_nano for one, two in pairwise(stages))
    assert decision.start_time_unix_nano <= stages[0].start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= decision.end_time_unix_nano <= request.end_time_unix_nano
    found = {
        attributes(span)["policyd.sheet"]: span.trace_id.hex() == TRACE_ID
        for span in exporting.spans
        if span.name == "sheet"
    }
    assert found == {"made": True, "found": False}
    roots = [span for span in exporting.spans if not span.parent_span_id]
    assert [attributes(span)["policyd.decision.id"] for span in roots] == [again.headers["x-policyd-decision-id"]]
    resource = attributes(exporting.taken["/v1/traces"][0].resource_spans[0].resource)
    assert resource["service.name"] == "policyd-of-the-test"


def test_an_error_names_the_stage_that_it_ended_in(exporting: Receiver, serving_with: Callable[..., Any]) -> None:
    with serving_with() as server:
        refused = server.client.post("/v1/decisions", json={"workload": {"tenant": "nobody", "model": "x"}})
        server.client.get("/v1/pools/none")
        server.client.get("/nowhere?token=tell-nobody-anything")
    failed = {span.name: attributes(span).get("error.type") for span in exporting.spans if span.status.code == 2}
    code = refused.json()["code"]
    assert failed == {"decision": code, "normalise": code}
    names = {span.name: attributes(span).get("error.type") for span in exporting.spans if span.kind == 2}
    assert names["GET /v1/pools/{id}"] == "not_found"
    assert names["GET"] == "not_found"


def test_a_batch_has_a_span_for_each_decision(
    exporting: Receiver, serving_with: Callable[..., Any], bank_chat: dict[str, Any]
) -> None:
    with serving_with() as server:
        items = server.client.post("/v1/decisions/batch", json={"requests": [bank_chat] * 3}).json()["items"]
    [request] = [span for span in exporting.spans if span.kind == 2]
    decisions = [span for span in exporting.spans if span.name == "decision"]
    assert {attributes(span)["policyd.decision.id"] for span in decisions} == {item["decision"]["id"] for item in items}
    assert {span.parent_span_id for span in decisions} == {request.span_id}


def test_metrics_are_those_of_the_table(
    exporting: Receiver, serving_with: Callable[..., Any], bank_chat: dict[str, Any]
) -> None:
    with serving_with() as server:
        server.client.post("/v1/decisions", json=bank_chat)
        server.client.get("/v1/pools/none")
        server.client.get("/readyz")
    found = {metric.name: metric for metric in exporting.metrics}
    table = {metric.name: metric for metric in METRICS}
    # Without receivers there is nothing to say of webhooks.
    assert set(found) == {name for name in table if not name.startswith("policyd.webhook.")}
    assert all(found[name].unit == table[name].unit for name in found)
    [point] = found["policyd.decision.duration"].histogram.data_points
    assert (attributes(point), point.count, sum(point.bucket_counts)) == ({"outcome": "allow"}, 1, 1)
    assert point.sum > 0
    assert list(point.explicit_bounds) == list(table["policyd.decision.duration"].bounds)
    [point] = found["policyd.decisions"].sum.data_points
    assert attributes(point) == {"outcome": "allow", "denied_by": "", "mode": "enforce"}


def test_lines_of_the_log_carry_the_trace_that_they_belong_to(
    exporting: Receiver, serving_with: Callable[..., Any], bank_chat: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_with() as server:

        async def faulty(*_: object) -> None:
            logging.getLogger("policyd.services.test").error("the disk says %s", "no")
            raise OSError("no")

        monkeypatch.setattr(server.parts.committer, "submit", faulty)
        header = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
        assert server.client.post("/v1/decisions", json=bank_chat, headers=header).status_code >= 500
        logging.getLogger("urllib3.connectionpool").warning("the sender speaks of itself")
    [request] = [span for span in exporting.spans if span.kind == 2]
    lines = {line.body.string_value: line for line in exporting.lines}
    line = lines["the disk says no"]
    assert (line.trace_id.hex(), line.span_id, line.severity_text) == (TRACE_ID, request.span_id, "ERROR")
    assert "the sender speaks of itself" not in lines
    told = [line for line in exporting.lines if "exception.stacktrace" in attributes(line)]
    assert all("Traceback" in attributes(line)["exception.stacktrace"] for line in told)


def test_no_secret_leaves(exporting: Receiver, serving_with: Callable[..., Any], bank_chat: dict[str, Any]) -> None:
    with serving_with() as server:
        secret = {"Authorization": SECRET, "Cookie": SECRET, "Idempotency-Key": "tell-nobody-anything"}
        server.client.post("/v1/decisions", json=bank_chat, headers=secret)
        server.client.get("/v1/pools?cursor=tell-nobody-anything", headers=secret)
        exposed = server.client.get("/metrics", headers=secret).text
    sent = b"".join(exporting.bytes)
    assert exporting.spans
    for word in (b"tell-nobody-anything", b"of-the-collector"):
        assert word not in sent
        assert word.decode() not in exposed
    assert all(headers["x-collector-key"] == "of-the-collector" for headers in exporting.headers)


def test_a_request_that_is_not_sampled_sends_nothing(
    exporting: Receiver, serving_with: Callable[..., Any], bank_chat: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with serving_with() as server:
        assert server.client.post("/v1/decisions", json=bank_chat).status_code == 200
    assert exporting.spans == []


@pytest.mark.parametrize(("share", "followed"), [("0", 0), ("1", 3)])
def test_without_a_sampler_a_share_is_followed_and_a_caller_decides_for_itself(
    exporting: Receiver,
    serving_with: Callable[..., Any],
    bank_chat: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    share: str,
    followed: int,
) -> None:
    monkeypatch.delenv("OTEL_TRACES_SAMPLER")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", share)
    with serving_with() as server:
        for _ in range(3):
            server.client.post("/v1/decisions", json=bank_chat)
        for flags, trace_id in (("00", TRACE_ID[::-1]), ("01", TRACE_ID)):
            headers = {"traceparent": f"00-{trace_id}-{PARENT_ID}-{flags}"}
            server.client.post("/v1/decisions", json=bank_chat, headers=headers)
    requests = [span for span in exporting.spans if span.kind == 2]
    assert [span.trace_id.hex() for span in requests if span.parent_span_id] == [TRACE_ID]
    assert len([span for span in requests if not span.parent_span_id]) == followed


def test_the_share_has_a_default() -> None:
    assert sampled_share({}) == 0.1
    assert sampled_share({"OTEL_TRACES_SAMPLER_ARG": " 0.25 "}) == 0.25


@pytest.mark.parametrize("told", ["all", "-0.1", "1.01", "nan"])
def test_what_is_no_share_is_a_fault_at_the_start(told: str) -> None:
    with pytest.raises(ConfigError, match="no share of the requests"):
        sampled_share({"OTEL_TRACES_SAMPLER_ARG": told})


def test_nothing_leaves_unasked(api: Any) -> None:
    assert api.parts.telemetry.tracing is None
    assert not any(isinstance(handler, otel_export.OtlpLogHandler) for handler in logging.getLogger().handlers)


def test_a_collector_that_is_gone_costs_no_decision(
    serving_with: Callable[..., Any], bank_chat: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(otel_export, "CLOSE_TIMEOUT_S", 1.0)
    with serving_with() as server:
        assert server.client.post("/v1/decisions", json=bank_chat).json()["outcome"] == "allow"
        ending = time.monotonic()
    assert time.monotonic() - ending < 10


@pytest.mark.parametrize(
    ("environment", "signals"),
    [
        ({}, set()),
        ({"OTEL_SERVICE_NAME": "x"}, set()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {"traces", "metrics", "logs"}),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, {"traces"}),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, {"traces"}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_LOGS_EXPORTER": "none"}, {"traces", "metrics"}),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, set()),
        ({"OTEL_METRICS_EXPORTER": "otlp,prometheus"}, {"metrics"}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "TRUE"}, set()),
    ],
)
def test_signals_leave_when_the_environment_asks(environment: dict[str, str], signals: set[str]) -> None:
    assert exported_signals(environment) == signals


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_LOGS_EXPORTER": "console"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"},
    ],
)
def test_what_is_not_supported_is_a_fault_at_the_start(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        exported_signals(environment)
