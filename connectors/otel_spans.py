"""Spans that have ended, as OTLP writes them: made from what was noted, encoded and sent in batches.

The SDK takes 50 microseconds to make a span and as long again to encode it, for each of the nine spans of a decision.
What it is asked for here stays its own: the sampler, the ids, the queue with its limits, the sender.

Rules: the bytes are those of ``opentelemetry.proto.trace.v1`` and say what the SDK's encoder would say.
It refuses events, links and attributes other than text, whole numbers and truth values, which nobody here has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from struct import Struct
from typing import Any, Final, NamedTuple

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

SCOPE: Final = "policyd"
_KINDS: Final = {SpanKind.INTERNAL: 1, SpanKind.SERVER: 2}
_TIMES: Final = Struct("<BQBQ")
_HAS_REMOTE: Final = b"\x85\x01\x00\x01\x00\x00"
_IS_REMOTE: Final = b"\x85\x01\x00\x03\x00\x00"
_STATUS: Final = {False: b"\x7a\x00", True: b"\x7a\x02\x18\x02"}


class Trace(NamedTuple):
    """What all spans of a trace in this process share."""

    id: bytes
    state: str


class Ended(NamedTuple):
    """One span. ``remote`` says that its parent is somebody else's; ``failed`` is the status of an error."""

    trace: Trace
    id: bytes
    parent: bytes
    name: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, str | int | bool]
    failed: bool = False
    kind: SpanKind = SpanKind.INTERNAL
    remote: bool = False


class Group(list[Ended]):
    """The spans that ended together: one place in the queue for all of a decision."""

    context: Final = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    """What the queue of the SDK asks: whether it is sampled. Nothing else is ever made."""


class EndedSpans(OTLPSpanExporter):
    """The SDK's sender, configured by the same variables, with an encoder of our own."""

    def __init__(self, resource: Resource) -> None:
        super().__init__()
        self._before = resource_bytes(resource)

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        """Send a batch of groups; a collector that does not take it costs these spans and nothing else."""
        sent = self._client.export(request_bytes(self._before, chain.from_iterable(spans)))
        return SpanExportResult.SUCCESS if sent.success else SpanExportResult.FAILURE


def resource_bytes(resource: Resource) -> bytes:
    """Who speaks, as the first field of ``ResourceSpans``."""
    attributes = b"".join(_attribute(0x0A, name, value) for name, value in resource.attributes.items())
    return _field(0x0A, attributes)


def request_bytes(before: bytes, spans: Iterable[Ended]) -> bytes:
    """An ``ExportTraceServiceRequest``: one resource, one scope, these spans."""
    scope = _field(0x0A, _field(0x0A, SCOPE.encode()))
    written = scope + b"".join(map(_span, spans))
    return _field(0x0A, before + _field(0x12, written))


def _span(span: Ended) -> bytes:
    (trace_id, state), span_id, parent, name, start_ns, end_ns, attributes, failed, kind, remote = span
    parts = [b"\x0a\x10", trace_id, b"\x12\x08", span_id, _named(name, _KINDS[kind])]
    parts += (_TIMES.pack(0x39, start_ns, 0x41, end_ns), _STATUS[failed], _IS_REMOTE if remote else _HAS_REMOTE)
    if parent:
        parts += (b"\x22\x08", parent)
    if state:
        parts.append(_field(0x1A, state.encode()))
    if attributes:
        parts += [_attribute(0x4A, key, value) for key, value in attributes.items()]
    return _field(0x12, b"".join(parts))


@lru_cache(maxsize=256)
def _named(name: str, kind: int) -> bytes:
    return _field(0x2A, name.encode("utf-8", "replace")) + bytes((0x30, kind))


@lru_cache(maxsize=1_024, typed=True)
def _attribute(tag: int, name: str, value: Any) -> bytes:
    """A ``KeyValue``."""
    if isinstance(value, bool):
        written = bytes((0x10, value))
    elif isinstance(value, int):
        written = b"\x18" + _varint(value & 0xFFFFFFFFFFFFFFFF)
    else:
        written = _field(0x0A, str(value).encode("utf-8", "replace"))
    return _field(tag, _field(0x0A, name.encode()) + _field(0x12, written))


def _field(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    return bytes((tag,)) + _varint(length) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
