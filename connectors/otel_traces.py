"""Spans of requests and decisions, for ``policyd.telemetry.Tracing``.

    POST /v1/decisions
      gate  read  decision
                    normalise  sheet  decide  commit  answer

Rules: a span is made when it is over, with the times that were noted; a request that is not sampled costs the sampler's
word and nothing else; attributes are ids, names of the table below and codes of errors, never a header and never a part
of a body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from time import time_ns
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import SpanKind, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.span import TraceState

from connectors.otel_spans import Ended, Group, Trace
from policyd.telemetry import CURRENT, NO_STAGES, RequestTrace, Stages, TraceIds

STAGES: Final = ("normalise", "sheet", "decide", "commit", "answer")
DECISION_ID: Final = "policyd.decision.id"
_NONE: Final[Mapping[str, str]] = {}
_NOTHING: Final = Context()

_REQUEST: Final[ContextVar[_Request | _Unsampled | None]] = ContextVar("policyd_request", default=None)


class OtelTracing:
    """``policyd.telemetry.Tracing`` with the sampler and the ids of a provider; ``tell`` takes the spans."""

    def __init__(self, provider: TracerProvider, tell: Callable[[Any], None]) -> None:
        self._sampler = provider.sampler
        self._ids = provider.id_generator
        self._propagator = TraceContextTextMapPropagator()
        self.tell: Callable[[Group], None] = tell

    def request(self, headers: Mapping[str, str]) -> RequestTrace:
        """A request begins, as part of the caller's trace when ``traceparent`` names one."""
        context = self._propagator.extract(headers, _NOTHING) if headers else _NOTHING
        caller = get_current_span(context).get_span_context()
        trace_id = caller.trace_id if caller.is_valid else self._ids.generate_trace_id()
        trace = self._sampled(context, trace_id, "HTTP", SpanKind.SERVER)
        if trace is None:
            return _Unsampled()
        return _Request(self, trace, caller.span_id.to_bytes(8, "big") if caller.is_valid else b"")

    def decision(self, decision_id: str) -> Stages:
        """A decision begins, inside the current request when there is one."""
        request = _REQUEST.get()
        if request is None:
            trace = self._sampled(_NOTHING, self._ids.generate_trace_id(), "decision", SpanKind.INTERNAL)
            return NO_STAGES if trace is None else _Stages(self, trace, b"", decision_id)
        if isinstance(request, _Unsampled):
            return NO_STAGES
        request.read()
        return _Stages(self, request.trace, request.id, decision_id)

    def new_id(self) -> bytes:
        """The id of a span."""
        return self._ids.generate_span_id().to_bytes(8, "big")

    def _sampled(self, context: Context, trace_id: int, name: str, kind: SpanKind) -> Trace | None:
        """The trace when the sampler takes it; its word on a trace holds for all spans of it here."""
        found = self._sampler.should_sample(context, trace_id, name, kind)
        if found.decision is not Decision.RECORD_AND_SAMPLE:
            return None
        state: TraceState | None = found.trace_state
        return Trace(trace_id.to_bytes(16, "big"), state.to_header() if state else "")


class _Request:
    """The span of one request, and of what comes before its decision."""

    sampled = True

    def __init__(self, tracing: OtelTracing, trace: Trace, parent: bytes) -> None:
        self._tracing = tracing
        self._parent = parent
        self._began_ns = time_ns()
        self._last_ns: int | None = self._began_ns
        self._at_the_gate = True
        self._spans = Group()
        self.trace = trace
        self.id = tracing.new_id()
        self._tokens: tuple[Token[_Request | _Unsampled | None], Token[TraceIds | None]] = (
            _REQUEST.set(self),
            CURRENT.set(TraceIds(trace.id.hex(), self.id.hex())),
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
        told: dict[str, str | int | bool] = {**attributes}
        if status:
            told["http.response.status_code"] = status
        failed = status >= 500 or not status
        ids = (self.trace, self.id, self._parent)
        whole = Ended(*ids, name, self._began_ns, time_ns(), told, failed, SpanKind.SERVER, bool(self._parent))
        self._spans.append(whole)
        self._tracing.tell(self._spans)
        _REQUEST.reset(self._tokens[0])
        CURRENT.reset(self._tokens[1])

    def _note(self, stage: str) -> None:
        if self._last_ns is None:
            return
        now_ns = time_ns()
        self._spans.append(Ended(self.trace, self._tracing.new_id(), self.id, stage, self._last_ns, now_ns, _NONE))
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

    __slots__ = ("_attributes", "_began_ns", "_ended", "_id", "_last_ns", "_parent", "_spans", "_trace", "_tracing")

    def __init__(self, tracing: OtelTracing, trace: Trace, parent: bytes, decision_id: str) -> None:
        self._tracing = tracing
        self._trace = trace
        self._parent = parent
        self._id = tracing.new_id()
        self._attributes = {DECISION_ID: decision_id}
        self._spans = Group()
        self._began_ns = self._last_ns = time_ns()
        self._ended = 0

    def ended(self, stage: str, detail: str = "") -> None:
        """This stage ends now; the next one begins."""
        self._tell(stage, {f"policyd.{stage}": detail} if detail else _NONE)
        self._ended = STAGES.index(stage) + 1

    def close(self, outcome: str, code: str = "") -> None:
        """The decision is over. In an error, the stage that was not finished carries it too."""
        failed = outcome == "error"
        told = {**self._attributes, "policyd.outcome": outcome}
        if failed:
            told["error.type"] = code
            if self._ended < len(STAGES):
                self._tell(STAGES[self._ended], {"error.type": code}, failed=True)
        elif code:
            told["policyd.denied_by"] = code
        whole = Ended(self._trace, self._id, self._parent, "decision", self._began_ns, time_ns(), told, failed)
        self._spans.append(whole)
        self._tracing.tell(self._spans)

    def _tell(self, stage: str, attributes: Mapping[str, str], *, failed: bool = False) -> None:
        now_ns = time_ns()
        span_id = self._tracing.new_id()
        self._spans.append(Ended(self._trace, span_id, self._id, stage, self._last_ns, now_ns, attributes, failed))
        self._last_ns = now_ns
