"""Spans of requests and decisions, for ``policyd.telemetry.Tracing``.

    POST /v1/decisions
      gate  read  decision
                    normalise  sheet  decide  commit  answer

Rules: a span of a stage is made when the stage is over, with the times that were noted; a request that is not sampled
costs its own span and nothing else; attributes are ids, names of the table below and codes of errors, never a header
and never a part of a body.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from time import time_ns
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from policyd.telemetry import CURRENT, NO_STAGES, RequestTrace, Stages, TraceIds

STAGES: Final = ("normalise", "sheet", "decide", "commit", "answer")
DECISION_ID: Final = "policyd.decision.id"

_REQUEST: Final[ContextVar[_Request | _Unsampled | None]] = ContextVar("policyd_request", default=None)


class OtelTracing:
    """``policyd.telemetry.Tracing`` on a tracer provider, which the caller owns."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("policyd")
        self._propagator = TraceContextTextMapPropagator()

    def request(self, headers: Mapping[str, str]) -> RequestTrace:
        """A request begins, as part of the caller's trace when ``traceparent`` names one."""
        parent = self._propagator.extract(headers, Context())
        began_ns = time_ns()
        span = self._tracer.start_span("HTTP", parent, SpanKind.SERVER, start_time=began_ns)
        return _Request(self._tracer, span, began_ns) if span.is_recording() else _Unsampled()

    def decision(self, decision_id: str) -> Stages:
        """A decision begins, inside the current request when there is one."""
        request = _REQUEST.get()
        if isinstance(request, _Unsampled):
            return NO_STAGES
        if request is not None:
            request.read()
        parent = Context() if request is None else request.context
        span = self._tracer.start_span("decision", parent, attributes={DECISION_ID: decision_id})
        return _Stages(self._tracer, span) if span.is_recording() else NO_STAGES


class _Request:
    """The span of one request, and of what comes before its decision."""

    sampled = True

    def __init__(self, tracer: Tracer, span: Span, began_ns: int) -> None:
        self._tracer = tracer
        self._last_ns: int | None = began_ns
        self._at_the_gate = True
        self._span = span
        self.context = set_span_in_context(span, Context())
        ids = span.get_span_context()
        self._tokens: tuple[Token[_Request | _Unsampled | None], Token[TraceIds | None]] = (
            _REQUEST.set(self),
            CURRENT.set(TraceIds(f"{ids.trace_id:032x}", f"{ids.span_id:016x}")),
        )

    def admitted(self) -> None:
        """The door let it in."""
        self._note("gate")
        self._at_the_gate = False

    def read(self) -> None:
        """The first decision of the request begins: what came before was reading it."""
        self._note("read")
        self._last_ns = None

    def end(self, name: str, status: int, attributes: Mapping[str, str]) -> None:
        """It was answered; with the status 0, it never was."""
        if self._at_the_gate:
            self._note("gate")
        self._span.update_name(name)
        self._span.set_attributes(attributes)
        if status:
            self._span.set_attribute("http.response.status_code", status)
        if status >= 500 or not status:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
        _REQUEST.reset(self._tokens[0])
        CURRENT.reset(self._tokens[1])

    def _note(self, stage: str) -> None:
        if self._last_ns is None:
            return
        now_ns = time_ns()
        self._tracer.start_span(stage, self.context, start_time=self._last_ns).end(now_ns)
        self._last_ns = now_ns


class _Unsampled:
    """A request that nobody follows, and so none of its decisions."""

    __slots__ = ("_token",)
    sampled = False

    def __init__(self) -> None:
        self._token: Token[_Request | _Unsampled | None] = _REQUEST.set(self)

    def admitted(self) -> None:
        """Nothing."""

    def end(self, name: str, status: int, attributes: Mapping[str, str]) -> None:
        """Nothing but to be forgotten."""
        _REQUEST.reset(self._token)


class _Stages:
    """The span of one decision, and of its stages."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = set_span_in_context(span, Context())
        self._last_ns = time_ns()
        self._ended = 0

    def ended(self, stage: str, detail: str = "") -> None:
        """This stage ends now; the next one begins."""
        now_ns = time_ns()
        attributes = {f"policyd.{stage}": detail} if detail else None
        self._tracer.start_span(stage, self._context, attributes=attributes, start_time=self._last_ns).end(now_ns)
        self._last_ns = now_ns
        self._ended = STAGES.index(stage) + 1

    def close(self, outcome: str, code: str = "") -> None:
        """The decision is over. In an error, the stage that was not finished carries it too."""
        self._span.set_attribute("policyd.outcome", outcome)
        if outcome == "error":
            self._fail(self._span, code)
            if self._ended < len(STAGES):
                stage = self._tracer.start_span(STAGES[self._ended], self._context, start_time=self._last_ns)
                self._fail(stage, code)
                stage.end()
        elif code:
            self._span.set_attribute("policyd.denied_by", code)
        self._span.end()

    def _fail(self, span: Span, code: str) -> None:
        span.set_attribute("error.type", code)
        span.set_status(Status(StatusCode.ERROR))
