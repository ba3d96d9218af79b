"""What policies say about one pool for one workload class.

A package answers a **question** (its name and the projection of the input onto what it reads) with an **answer**: the
raw exports of the Rego package. The core turns answers into **violations** that a person can act on.

Rules: an answer that is not well formed is an error, an error is a hard violation, violations have one canonical order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


class Enforcement(StrEnum):
    """How much a violation weighs: nobody may waive ``hard``; a waiver lifts ``soft``; ``advisory`` only warns.

    ``approval`` refuses until a person has approved the placement; only ``approval`` rules of a package weigh so.
    """

    HARD = "hard"
    SOFT = "soft"
    APPROVAL = "approval"
    ADVISORY = "advisory"


class Question(NamedTuple):
    """One evaluation: a package name (below ``placement.``) and its projected input as canonical JSON bytes."""

    package: str
    input_json: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The exports of one package for one question, as plain JSON values; sets arrive as lists in any order.

    ``error`` is set when the evaluation brought no exports (timeout, crash, built-in error, conflict): then every
    other field is empty and the pool is refused.
    """

    deny: tuple[Mapping[str, Any], ...] = ()
    warn: tuple[Mapping[str, Any], ...] = ()
    prefer: int = 0
    obligation: tuple[Mapping[str, Any], ...] = ()
    approval: tuple[Mapping[str, Any], ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """Why one pool is refused (or, when advisory, warned about)."""

    policy: str
    rule: str
    enforcement: Enforcement
    location: str
    message: str
    observed: Any = None
    required: Any = None
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """The shape that the HTTP contract fixes."""
        return {
            "policy": self.policy,
            "rule": self.rule,
            "enforcement": self.enforcement.value,
            "location": self.location,
            "message": self.message,
            "observed": self.observed,
            "required": self.required,
            "remedy": self.remedy,
        }


@dataclass(frozen=True, slots=True)
class RuleDoc:
    """What the METADATA and the source say about one ``deny``, ``warn`` or ``approval`` rule; ``export`` is which.

    ``digest`` is over everything that the rule means: the text of its package and libraries, what the METADATA came to,
    and the settings that the package reads. A waiver is bound to it.
    """

    rule: str
    location: str
    title: str
    enforcement: Enforcement
    remedy: str
    export: str = "deny"
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Package:
    """One compiled package below ``placement.``: what it exports and what it reads.

    ``reads`` are paths into the input document, none a prefix of another, each a tuple of keys
    (``("pool", "locations")`` reads everything below). ``optional`` are the paths that may be missing.
    """

    name: str
    title: str
    enforcement: Enforcement
    owner: str
    remedy: str
    location: str
    exports: frozenset[str]
    reads: tuple[tuple[str, ...], ...]
    optional: frozenset[tuple[str, ...]] = frozenset()
    builtins: frozenset[str] = frozenset()
    rules: Mapping[str, RuleDoc] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicySet:
    """A policy tree, compiled and described: content address, commit if known, engine, packages by name."""

    digest: str
    commit: str | None
    engine: str
    packages: Mapping[str, Package]
    settings: Mapping[str, Any]
