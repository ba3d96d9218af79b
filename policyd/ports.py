"""The seams between the core and the outside world. Adapters live elsewhere; ``policyd.bootstrap`` joins them.

Rules: a port speaks the words of the core; it never answers "allowed"; its failures are ``policyd.errors`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

from policyd.core.verdict import Answer, PolicySet, Question


@dataclass(frozen=True, slots=True)
class PolicyTree:
    """The bytes of one policy revision, before anything is compiled.

    ``modules`` and ``data`` map a path relative to the tree (POSIX) to the file's text; ``*_test.rego`` files are not
    in ``modules`` but in ``tests``. ``digest`` is ``sha256:…`` over paths and contents; ``commit`` the git commit
    whose tree holds exactly these bytes, or None.
    """

    digest: str
    commit: str | None
    modules: Mapping[PurePosixPath, str]
    tests: Mapping[PurePosixPath, str]
    data: Mapping[PurePosixPath, str]
    casbin_model: str
    casbin_rows: str


@dataclass(slots=True)
class EngineCounts:
    """What happened to an engine's processes since the start: evaluations that missed the deadline, workers that were
    killed for it, that crashed, and that were replaced after long use."""

    timeouts: int = 0
    killed: int = 0
    crashed: int = 0
    recycled: int = 0


class Engine(Protocol):
    """Evaluates Rego packages. One instance serves many compiled policy sets (old and new during a swap).

    Contract (one suite runs it on every adapter):

    - ``load`` compiles a tree aside, and makes it available under its digest; it raises ``PolicyInvalid`` with a
      ``path:line`` finding for each fault, and ``EngineError`` when the engine itself fails. It never replaces what
      another digest serves.
    - ``evaluate`` answers every question of a batch, in order. A question that times out, crashes the engine, conflicts
      or hits a built-in error gets an ``Answer`` with ``error`` set, and the other questions still get theirs. When
      nothing can be evaluated at all (engine gone, wrong revision) it raises ``EngineError``.
    - ``unload`` forgets a digest; unknown digests are ignored.
    - ``close`` ends every process and connection that the adapter started.
    """

    @property
    def name(self) -> str:
        """Engine and version as recorded with decisions, for example ``regopy 1.5.2``."""

    @property
    def counts(self) -> EngineCounts:
        """What happened to its processes, for metrics."""

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """The process ids of its own workers that run now; none when it runs elsewhere."""

    async def load(self, tree: PolicyTree) -> PolicySet: ...

    async def evaluate(self, digest: str, questions: Sequence[Question], deadline_ms: int) -> list[Answer]: ...

    async def unload(self, digest: str) -> None: ...

    async def test(self, tree: PolicyTree) -> list[TestResult]:
        """Run the ``test_*`` rules of the tree's ``*_test.rego`` files."""

    async def health(self) -> None:
        """Return when the engine can answer; raise ``EngineError`` otherwise."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TestResult:
    """One ``test_*`` rule: where it stands, whether it held, and the engine's word when it did not."""

    __test__ = False

    package: str
    rule: str
    location: str
    passed: bool
    detail: str = ""


class Denial(NamedTuple):
    """One row that denies, with its place; ``role`` says that the subject is a role which somebody has."""

    where: str
    subject: str
    domain: str
    obj: str
    action: str
    role: bool


class Entitlements(Protocol):
    """Who may do what: Casbin, RBAC with domains. Built aside and swapped whole with its policy set."""

    @property
    def digest(self) -> str: ...

    @property
    def denials(self) -> Sequence[Denial]:
        """The rows that deny, as written."""

    def permits(self, subject: str, domain: str, obj: str, action: str) -> bool:
        """True only when a row allows it and none denies it. Unknown names are False."""

    def denies(self, subject: str, domain: str, obj: str, action: str) -> bool:
        """True when a row denies it to the subject or to a role that it has there."""


@dataclass(frozen=True, slots=True)
class CollectedEntry:
    """What a collector is told of one entry of the decision log."""

    kind: str
    time_us: int
    attributes: Mapping[str, str | int]
    body: Mapping[str, Any]


class Collector(Protocol):
    """Takes entries of the log elsewhere. A batch has arrived when ``send`` returns, or is an ``ExportFailed``."""

    def send(self, entries: Sequence[CollectedEntry]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TreeLimits:
    """How large a tree of files may be."""

    files: int
    file_bytes: int
    tree_bytes: int
    depth: int


@dataclass(frozen=True, slots=True)
class CommitProof:
    """What shows that a git commit holds the files of a tree: the bytes of the commit and of its folders, and which
    folder of the repository the tree is. Nothing of it is proved before it is computed again."""

    commit: bytes
    trees: tuple[bytes, ...]
    path: str


@dataclass(frozen=True, slots=True)
class SourceTree:
    """One tree of files as a source gave it, and the commit that holds it, when the source can name one."""

    files: Mapping[PurePosixPath, bytes]
    commit: str | None
    proof: CommitProof | None = None


class TreeSource(Protocol):
    """Where the files of a policy or fleet tree come from: a repository, a directory, a bundle."""

    @property
    def place(self) -> str:
        """The source in words, without a secret."""

    def read(self, known: str | None) -> SourceTree | None:
        """The tree as it is now; None when it is that of the commit ``known`` still. Ends at its deadline.

        Raises ``SourceRefused`` for what must not go live, and ``SourceUnreachable`` when nothing can be read.
        """


class FactSource(Protocol):
    """What changes by the minute: headroom, queue, health, spot prices, spent budgets."""

    def read(self) -> Mapping[str, Any]:
        """The newest facts as plain JSON values; raises ``ConfigError`` when they cannot be read."""
