"""Frames: what is the same in thousands of requests, worked out once.

Two requests of one application differ in their token counts and hardly in anything else. Everything else together is
the **frame**: it is normalised once per snapshot, and it remembers the class keys that its size classes have led to.
A frame is a memo of pure functions (``normalise``, ``class_side``, ``class_key``); with it or without it the key of a
request is the same, which a property test holds it to.

Rules: the frame's key is the whole request but its numbers of demand, and the principal; bounded, least recently used
out first; a new snapshot starts with no frames.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from policyd.core.classes import class_key
from policyd.core.facts import Facts, budget_limits, crossed_percent
from policyd.core.inputs import class_side
from policyd.core.normalise import Normalised, normalise
from policyd.core.principal import Principal
from policyd.core.quantities import RATE_CLASSES, size_class
from policyd.core.snapshot import Snapshot
from policyd.core.workload import DemandRequest, Workload, WorkloadRequest
from policyd.ledger.changes import LimitKey, SetLimit
from policyd.ledger.chart import Chart, ceilings_of, levels, limits_of
from policyd.ledger.rules import Limit
from policyd.services.clock import day, hour_of_week
from policyd.services.permission import OBJECT

FRAMES_MAX = 4_096
NOTHING_SET: Final[Mapping[LimitKey, SetLimit]] = {}
KEYS_PER_FRAME_MAX = 1_024


_FIELDS: Final = Workload._fields
_DEMAND: Final = ("input_tokens", "max_output_tokens", "requests_per_hour", "duration_hours", "labels")
assert _FIELDS[-len(_DEMAND) :] == _DEMAND


@dataclass(slots=True)
class Frame:
    """A normalised workload with the default demand, its budgets and zone, and the class keys found so far."""

    template: Normalised
    limits: tuple[tuple[str, int], ...]
    zone: str
    charged: tuple[Limit, ...]
    levels: tuple[str, ...]
    decides: bool
    keys: dict[tuple[Any, ...], bytes] = field(default_factory=dict)


class Framed(NamedTuple):
    """A request, normalised, with the key of its class. ``document`` gives the class side when a sheet must be made."""

    normalised: Normalised
    key: bytes
    crossed_percent: int | None
    hour_of_week: int
    date: str
    charged: tuple[Limit, ...] = ()
    """The limits that it is charged to, of every level."""
    groups: Mapping[str, str] = MappingProxyType({})
    """The group of each pool."""
    decides: bool = False
    """Whether the principal may decide where the workload belongs."""

    def document(self, snapshot: Snapshot) -> Mapping[str, Any]:
        """The class side of the input document."""
        workload, terms = self.normalised.workload, self.normalised.terms
        return class_side(workload, terms, snapshot.fleet, self.crossed_percent, self.hour_of_week, self.date)


@dataclass
class Frames:
    """The frames of the live snapshot. ``ledger`` says which threshold the accounts of some levels have crossed."""

    ledger: Callable[[Sequence[str]], int | None] = lambda levels: None
    limits: Callable[[], Mapping[LimitKey, SetLimit]] = lambda: NOTHING_SET
    """What is set beside the fleet: another object when it has changed."""
    _snapshot: Snapshot | None = None
    _frames: OrderedDict[tuple[Any, ...], Frame] = field(default_factory=OrderedDict)
    _set: Mapping[LimitKey, SetLimit] = field(default_factory=dict)
    _chart: Chart = field(default_factory=dict)
    _groups: Mapping[str, str] = field(default_factory=dict)

    def place(
        self, snapshot: Snapshot, request: WorkloadRequest, principal: Principal, facts: Facts, time_us: int
    ) -> Framed:
        """Normalise a request and find its class key. Raises what ``normalise`` raises."""
        frame = self._frame(snapshot, request, principal)
        workload = _with_demand(frame.template.workload, request, frame, snapshot, principal)
        crossed = crossed_percent(frame.limits, facts, self.ledger(frame.levels))
        hour, date = hour_of_week(frame.zone, time_us), day(time_us)
        sizes = (
            size_class(workload.input_tokens),
            size_class(workload.max_output_tokens),
            size_class(workload.requests_per_hour, RATE_CLASSES),
            crossed,
            hour,
            date,
        )
        normalised = Normalised(workload, frame.template.terms)
        key = frame.keys.get(sizes)
        if key is None:
            document = class_side(workload, normalised.terms, snapshot.fleet, crossed, hour, date)
            key = class_key(workload, document, snapshot.reads)
            if len(frame.keys) >= KEYS_PER_FRAME_MAX:
                frame.keys.clear()
            frame.keys[sizes] = key
        return Framed(normalised, key, crossed, hour, date, frame.charged, self._groups, frame.decides)

    def _frame(self, snapshot: Snapshot, request: WorkloadRequest, principal: Principal) -> Frame:
        found = self.limits()
        if snapshot is not self._snapshot or found is not self._set:
            self._frames.clear()
            self._snapshot, self._set = snapshot, found
            self._chart = ceilings_of(snapshot.fleet, found)
            self._groups = {pool.id: pool.group for pool in snapshot.fleet.pools.values()}
        key = _frame_key(request, principal)
        frame = self._frames.get(key)
        if frame is not None:
            self._frames.move_to_end(key)
            return frame
        template = normalise(request.model_copy(update={"demand": DemandRequest()}), principal, snapshot.fleet)
        tenant = snapshot.fleet.tenants[template.workload.tenant]
        workload = template.workload
        scope = (tenant.name, workload.project, workload.environment)
        charged = limits_of(self._chart, *scope)
        decides = principal.permitted(snapshot.entitlements, OBJECT, "decide", *scope)
        limits = budget_limits(tenant, workload.project)
        frame = Frame(template, limits, tenant.zone, charged, levels(*scope), decides)
        self._frames[key] = frame
        if len(self._frames) > FRAMES_MAX:
            self._frames.popitem(last=False)
        return frame


def _with_demand(
    template: Workload, request: WorkloadRequest, frame: Frame, snapshot: Snapshot, principal: Principal
) -> Workload:
    """The template with this request's numbers; what the request leaves out is the template's default already."""
    demand = request.demand
    if demand.hourly is not None:
        return normalise(request, principal, snapshot.fleet).workload
    return with_numbers(
        template,
        (
            template.input_tokens if demand.input_tokens is None else demand.input_tokens,
            template.max_output_tokens if demand.max_output_tokens is None else demand.max_output_tokens,
            template.requests_per_hour if demand.requests_per_hour is None else demand.requests_per_hour,
            template.duration_hours if demand.duration_hours is None else demand.duration_hours,
        ),
    )


def with_numbers(template: Workload, numbers: tuple[int, ...]) -> Workload:
    """The template with these numbers of demand: input and output tokens, requests an hour, hours."""
    # By position, since ``replace`` takes four times as long.
    values: tuple[Any, ...] = (*template[: -len(_DEMAND)], *numbers, template.labels)
    return Workload(*values)


def _frame_key(request: WorkloadRequest, principal: Principal) -> tuple[Any, ...]:
    profile, data, resources = request.profile, request.data, request.resources
    return (
        principal,
        request.scope,
        request.tenant,
        request.project,
        request.environment,
        request.model,
        request.model_version,
        request.sla_class,
        profile.urgency,
        profile.traffic,
        profile.task,
        profile.memory_bound,
        data.classification,
        _frozen(data.categories),
        _frozen(data.residency),
        _frozen(data.sources),
        _frozen(resources.accelerators),
        resources.gpu_count,
        resources.gpu_memory_gib,
        tuple(request.labels.items()) if request.labels else (),
    )


def _frozen(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)
