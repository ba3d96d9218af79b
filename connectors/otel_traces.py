"""Spans of requests and decisions, for ``policyd.telemetry.Tracing``.

    POST /v1/decisions
      gate  read  decision
                    normalise  sheet  decide  commit  answer

Rules: spans within a request are made when they are over, with the times that were noted; a request that is not sampled
costs its own span and nothing else; attributes are ids, names of the table below and codes of errors, never a header
and never a part of a body.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from time import time_ns
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from policyd.telemetry import CURRENT, NO_STAGES, RequestTrace, Stages, TraceIds

STAGES: Final = ("normalise", "sheet", "decide", "commit", "answer")
DECISION_ID: Final = "policyd.decision.id"
ERROR: Final = "error.type"
SCOPE: Final = InstrumentationScope("policyd")
_NO_STATUS: Final = Status(StatusCode.UNSET)
_ERROR_STATUS: Final = Status(StatusCode.ERROR)

_REQUEST: Final[ContextVar[_Request | _Unsampled | None]] = ContextVar("policyd_request", default=None)


class OtelTracing:
    """``policyd.telemetry.Tracing`` on a tracer provider and what takes its spans, which the caller owns."""

    def __init__(self, provider: TracerProvider, processor: SpanProcessor) -> None:
        self._tracer = provider.get_tracer(SCOPE.name)
        self._spans = _Spans(provider, processor)
        self._propagator = TraceContextTextMapPropagator()

    def request(self, headers: Mapping[str, str]) -> RequestTrace:
        """A request begins, as part of the caller's trace when ``traceparent`` names one."""
        parent = self._propagator.extract(headers, Context()) if headers else Context()
        began_ns = time_ns()
        span = self._tracer.start_span("HTTP", parent, SpanKind.SERVER, start_time=began_ns)
        return _Request(self._spans, span, began_ns) if span.is_recording() else _Unsampled()

    def decision(self, decision_id: str) -> Stages:
        """A decision begins, inside the current request when there is one."""
        request = _REQUEST.get()
        if isinstance(request, _Unsampled):
            return NO_STAGES
        if request is not None:
            request.read()
            return _Stages(self._spans, decision_id, request.context)
        span = self._tracer.start_span("decision", Context(), attributes={DECISION_ID: decision_id})
        return _Stages(self._spans, decision_id, None, span) if span.is_recording() else NO_STAGES


class _Spans:
    """Spans that are over, made with the times that were noted.

    Whether a trace is taken was decided at its first span, so no sampler is asked; nothing is changed afterwards, so no
    lock is needed: a fourth of what the SDK's own spans cost. Attributes are few and short, so no limit is applied.
    """

    def __init__(self, provider: TracerProvider, processor: SpanProcessor) -> None:
        self._resource = provider.resource
        self._processor = processor
        self._span_id = provider.id_generator.generate_span_id

    def context_in(self, parent: SpanContext) -> SpanContext:
        """That of a new span in the same trace."""
        return SpanContext(parent.trace_id, self._span_id(), False, parent.trace_flags, parent.trace_state)

    def ended(
        self,
        name: str,
        parent: SpanContext,
        times_ns: tuple[int, int],
        attributes: Mapping[str, str] | None = None,
        context: SpanContext | None = None,
    ) -> None:
        """One span from a time to another; in error when it has ``error.type``."""
        failed = attributes is not None and ERROR in attributes
        self._processor.on_end(
            ReadableSpan(
                name,
                context or self.context_in(parent),
                parent,
                self._resource,
                attributes,
                status=_ERROR_STATUS if failed else _NO_STATUS,
                start_time=times_ns[0],
                end_time=times_ns[1],
                instrumentation_scope=SCOPE,
            )
        )


class _Request:
    """The span of one request, and of what comes before its decision."""

    sampled = True

    def __init__(self, spans: _Spans, span: Span, began_ns: int) -> None:
        self._spans = spans
        self._last_ns: int | None = began_ns
        self._at_the_gate = True
        self._span = span
        self.context = span.get_span_context()
        self._tokens: tuple[Token[_Request | _Unsampled | None], Token[TraceIds | None]] = (
            _REQUEST.set(self),
            CURRENT.set(TraceIds(f"{self.context.trace_id:032x}", f"{self.context.span_id:016x}")),
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
        self._span.set_attributes({**attributes, "http.response.status_code": status} if status else attributes)
        if status >= 500 or not status:
            self._span.set_status(_ERROR_STATUS)
        self._span.end()
        _REQUEST.reset(self._tokens[0])
        CURRENT.reset(self._tokens[1])

    def _note(self, stage: str) -> None:
        if self._last_ns is None:
            return
        now_ns = time_ns()
        self._spans.ended(stage, self.context, (self._last_ns, now_ns))
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
    """The span of one decision and those of its stages, all made when it is over.

    ``span`` is its own when it is the first of its trace; else it is made in ``parent``.
    """

    def __init__(self, spans: _Spans, decision_id: str, parent: SpanContext | None, span: Span | None = None) -> None:
        self._spans = spans
        self._decision_id = decision_id
        self._parent = parent
        self._span = span
        self._began_ns = time_ns()
        self._ended: list[tuple[str, str, int]] = []

    def ended(self, stage: str, detail: str = "") -> None:
        """This stage ends now; the next one begins."""
        self._ended.append((stage, detail, time_ns()))

    def close(self, outcome: str, code: str = "") -> None:
        """The decision is over. In an error, the stage that was not finished carries it too."""
        now_ns = time_ns()
        attributes = {DECISION_ID: self._decision_id, "policyd.outcome": outcome}
        failed = {ERROR: code} if outcome == "error" else {}
        if code and not failed:
            attributes["policyd.denied_by"] = code
        attributes |= failed
        if self._span is not None:
            context = self._span.get_span_context()
            self._span.set_attributes(attributes)
            if failed:
                self._span.set_status(_ERROR_STATUS)
            self._span.end(now_ns)
        else:
            assert self._parent is not None
            context = self._spans.context_in(self._parent)
            self._spans.ended("decision", self._parent, (self._began_ns, now_ns), attributes, context)
        last_ns = self._began_ns
        for stage, detail, end_ns in self._ended:
            self._spans.ended(stage, context, (last_ns, end_ns), {f"policyd.{stage}": detail} if detail else None)
            last_ns = end_ns
        reached = STAGES.index(self._ended[-1][0]) + 1 if self._ended else 0
        if failed and reached < len(STAGES):
            self._spans.ended(STAGES[reached], context, (last_ns, now_ns), failed)
