"""Spans as OTLP writes them: the encoder says what the SDK's own says."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from connectors.otel_spans import SCOPE, Ended, Trace, request_bytes, resource_bytes

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
TIMES = st.integers(0, 2**63)
IDS = st.binary(min_size=8, max_size=8).filter(any)
ATTRIBUTES = st.dictionaries(
    TEXT.filter(bool), st.one_of(TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1)), max_size=5
)
SPANS = st.builds(
    Ended,
    st.builds(Trace, st.binary(min_size=16, max_size=16).filter(any), st.sampled_from(["", "a=1", "a=1,b=c/d"])),
    IDS,
    st.one_of(st.just(b""), IDS),
    TEXT,
    TIMES,
    TIMES,
    ATTRIBUTES,
    st.booleans(),
    st.sampled_from([SpanKind.INTERNAL, SpanKind.SERVER]),
)


def theirs(span: Ended, resource: Resource) -> ReadableSpan:
    """The same span as the SDK has it."""
    trace_id = int.from_bytes(span.trace.id, "big")
    state = TraceState.from_header([span.trace.state]) if span.trace.state else None

    def context(span_id: bytes, *, remote: bool) -> SpanContext:
        number = int.from_bytes(span_id, "big")
        return SpanContext(trace_id, number, is_remote=remote, trace_flags=TraceFlags(1), trace_state=state)

    return ReadableSpan(
        span.name,
        context=context(span.id, remote=False),
        parent=context(span.parent, remote=span.remote) if span.parent else None,
        resource=resource,
        attributes=span.attributes,
        kind=span.kind,
        status=Status(StatusCode.ERROR) if span.failed else Status(),
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=InstrumentationScope(SCOPE),
    )


@given(st.lists(SPANS, min_size=1, max_size=5), ATTRIBUTES)
def test_the_bytes_say_what_the_sdk_would_say(spans: list[Ended], told: dict[str, Any]) -> None:
    spans = [span._replace(remote=bool(span.parent) and span.kind is SpanKind.SERVER) for span in spans]
    resource = Resource(told)
    found = ExportTraceServiceRequest()
    found.ParseFromString(request_bytes(resource_bytes(resource), spans))
    assert found == encode_spans([theirs(span, resource) for span in spans])
