"""Workload classes and pool groups: who is asked what, so that nothing is evaluated twice.

Pools that look alike to a package share its question; workloads that look alike to all packages share a sheet. The
cut follows each package's read set, found in its compiled plan, so an evaluation cannot depend on what is not in its
question.

Rules: a path that a package reads and that is absent, null or ill-typed is never put into a question: the pool is
refused instead (``fact_missing``). The key of a class is what the policies read and the names that rows are made from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from policyd.core.cost import Pricing, pricing_of
from policyd.core.fleet import Fleet
from policyd.core.inputs import CLASS_SHAPE, missing_facts, performance_of, pool_facts, serving_facts
from policyd.core.pool import declared_of
from policyd.core.projection import project
from policyd.core.verdict import Package, PolicySet, Question
from policyd.core.workload import Workload

_CANONICAL: Final = orjson.OPT_SORT_KEYS


@dataclass(frozen=True)
class Grouping:
    """The pools of a fleet for one model, grouped by what each package reads of them. Made once per snapshot and model.

    ``groups[package]`` maps the projected JSON to the ids that share it; ``missing[package][pool]`` names absent paths;
    ``pricing`` says for each pool that offers the model how it is priced, or which fact is missing for that;
    ``declared`` has for each pool what ``policyd.core.pool.declared_of`` tells of it.
    """

    offered: frozenset[str]
    pricing: Mapping[str, Pricing | str]
    groups: Mapping[str, Mapping[bytes, tuple[str, ...]]]
    missing: Mapping[str, Mapping[str, tuple[str, ...]]]
    declared: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class PackageGroups:
    """The pools as one package tells them apart, and those about which a fact that it reads is missing."""

    groups: Mapping[bytes, tuple[str, ...]]
    missing: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class PoolSides:
    """The pools of a fleet as documents, and their groups for the packages that read nothing of how a model is served.

    Made once per snapshot; ``Grouping`` adds what depends on the model.
    """

    documents: Mapping[str, Mapping[str, Any]]
    alone: Mapping[str, PackageGroups]
    declared: Mapping[str, Mapping[str, Any]]


def pool_sides(fleet: Fleet, policies: PolicySet) -> PoolSides:
    """Every pool as policies see it, whatever the model."""
    documents = {pool.id: {"pool": pool_facts(pool)} for pool in fleet.pools.values()}
    alone = {
        package.name: _group(package, documents) for package in policies.packages.values() if not _asks_serving(package)
    }
    return PoolSides(documents, alone, {pool.id: declared_of(pool) for pool in fleet.pools.values()})


def group_pools(fleet: Fleet, policies: PolicySet, model: str, sides: PoolSides) -> Grouping:
    """Group every pool of the fleet by the pool side of what each package reads."""
    served = {pool.id: serving_facts(pool, model, fleet) for pool in fleet.pools.values()}
    documents = {
        name: {**sides.documents[name], "serving": serving} for name, serving in served.items() if serving is not None
    }
    by_package = {
        package.name: sides.alone.get(package.name) or _group(package, documents)
        for package in policies.packages.values()
    }
    return Grouping(
        offered=frozenset(documents),
        pricing=_pricings(fleet, model),
        groups={name: found.groups for name, found in by_package.items()},
        missing={name: found.missing for name, found in by_package.items()},
        declared=sides.declared,
    )


def _asks_serving(package: Package) -> bool:
    return any(path[:1] in ((), ("serving",)) for path in package.reads)


def _group(package: Package, documents: Mapping[str, Mapping[str, Any]]) -> PackageGroups:
    reads = _side(package, class_side=False)
    groups: dict[bytes, list[str]] = {}
    missing: dict[str, tuple[str, ...]] = {}
    for name, document in documents.items():
        faults = _missing(document, reads, package.optional)
        if faults:
            missing[name] = faults
        else:
            groups.setdefault(orjson.dumps(project(document, reads), option=_CANONICAL), []).append(name)
    return PackageGroups({key: tuple(names) for key, names in groups.items()}, missing)


def _pricings(fleet: Fleet, model: str) -> dict[str, Pricing | str]:
    offerings = ((pool, pool.offering(model)) for pool in fleet.pools.values())
    return {
        pool.id: pricing_of(pool, offering, performance_of(pool, offering, fleet), fleet)
        for pool, offering in offerings
        if offering is not None
    }


def _side(package: Package, *, class_side: bool) -> tuple[tuple[str, ...], ...]:
    """The reads on one side of the input; a package that reads everything reads everything on both."""
    if any(path == () for path in package.reads):
        keys = CLASS_SHAPE if class_side else ("pool", "serving")
        return tuple((key,) for key in keys)
    return tuple(path for path in package.reads if (path[0] in CLASS_SHAPE) is class_side)


def _missing(
    document: Mapping[str, Any], reads: Sequence[tuple[str, ...]], optional: frozenset[tuple[str, ...]]
) -> tuple[str, ...]:
    found = {".".join(path) for read in reads for path in missing_facts(document, read, optional)}
    return tuple(sorted(found))


@dataclass(frozen=True)
class ClassView:
    """A workload class as the packages see it: projected JSON and missing paths per package, and the sheet's key."""

    key: bytes
    projections: Mapping[str, bytes]
    missing: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ClassReads:
    """The class side of every package's read set, found once per policy set."""

    reads: Mapping[str, tuple[tuple[str, ...], ...]]
    optional: Mapping[str, frozenset[tuple[str, ...]]]
    union: tuple[tuple[str, ...], ...]
    clock: bool


def class_reads(policies: PolicySet) -> ClassReads:
    """What the policies read of the class side, per package and together."""
    reads = {package.name: _side(package, class_side=True) for package in policies.packages.values()}
    paths = sorted({path for package in reads.values() for path in package})
    union = tuple(path for path in paths if not any(path != p and path[: len(p)] == p for p in paths))
    return ClassReads(
        reads=reads,
        optional={package.name: package.optional for package in policies.packages.values()},
        union=union,
        clock=any(path[0] == "clock" for path in union),
    )


def class_key(workload: Workload, document: Mapping[str, Any], reads: ClassReads) -> bytes:
    """The key of the sheet: the names and the day its rows are made from, and the class side that the policies read."""
    names = (
        document["clock"]["date"],
        workload.tenant,
        workload.project,
        workload.model,
        workload.model_version,
        workload.sla_class,
    )
    return orjson.dumps((names, project(document, reads.union)), option=_CANONICAL)


def view_class(key: bytes, document: Mapping[str, Any], reads: ClassReads) -> ClassView:
    """Project the class side for every package."""
    return ClassView(
        key=key,
        projections={
            name: orjson.dumps(project(document, paths), option=_CANONICAL) for name, paths in reads.reads.items()
        },
        missing={name: _missing(document, paths, reads.optional[name]) for name, paths in reads.reads.items()},
    )


def questions_for(view: ClassView, grouping: Grouping) -> list[Question]:
    """One question per package and distinct projection; none where a fact is missing."""
    return [
        Question(name, join(view.projections[name], pool_json))
        for name, groups in grouping.groups.items()
        if not view.missing[name]
        for pool_json in groups
    ]


def join(left: bytes, right: bytes) -> bytes:
    """Two JSON objects with disjoint keys, as one."""
    if left == b"{}":
        return right
    return left if right == b"{}" else left[:-1] + b"," + right[1:]
