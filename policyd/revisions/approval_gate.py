"""The last gate: whether enough persons have approved a candidate, each by a signature of their own.

    protected changes ──► two persons        OWNERS of what is live, file by file ──► as many of its persons as it says

Rules: pure, over what was read; all needs must be met, and one approval may meet several; a person counts once,
whatever keys they have; who wrote or signed the commit does not count; an approval that does not count is told with its
reason, and harms none of the others. Without allowed signers nobody can approve, so nothing is asked for, and the gate
says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from policyd.errors import ApprovalRefused, Finding, RevisionError
from policyd.revisions.allowed_signers import AllowedSigners
from policyd.revisions.approvals import Approval, Change, approver_of
from policyd.revisions.gates import GateResult
from policyd.revisions.owners import OWNERS, Need, owners_of
from policyd.revisions.protected_changes import ProtectedChange

NAME: Final = "approval"
PROTECTED_NEED: Final = 2
PATHS_TOLD_MAX: Final = 3
Files = Mapping[PurePosixPath, bytes]


@dataclass(frozen=True, slots=True)
class Besides:
    """A need that comes from elsewhere, such as from the impact: so many approvals, and why."""

    count: int
    why: str


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One need, and whom it takes: so many of ``persons``, of all who approve when it is None."""

    count: int
    persons: frozenset[str] | None
    why: str


def approval_gate(
    change: Change,
    approvals: Iterable[Approval],
    signers: AllowedSigners | None,
    live: Files,
    candidate: Files,
    protected: Sequence[ProtectedChange],
    authors: Collection[str],
    now_us: int,
    besides: Sequence[Besides] = (),
) -> GateResult:
    """What the gate says. ``live`` and ``candidate`` are the files of what ``change`` replaces, and of what comes."""
    details: dict[str, Any] = {"protected": [each.to_json() for each in protected[:20]]}
    details["protected_total"] = len(protected)
    if signers is None:
        said = "nobody is named who could approve (revisions.allowed_signers_file), so nothing is asked for"
        return GateResult(NAME, not besides, said, details=details)
    try:
        owners_of(candidate)
        needs = [*_of_owners(live, candidate, signers), *_of_protected(protected)]
    except RevisionError as error:
        return GateResult(NAME, False, error.detail, error.findings, details)
    needs += [_Wanted(each.count, None, each.why) for each in besides if each.count > 0]
    counted, refused = _counted(change, approvals, signers, authors, now_us)
    unmet = [need for need in needs if _given(need, counted) < need.count]
    details |= {"approvers": sorted(counted), "authors": sorted(authors), "signers": signers.digest}
    details |= {"needed": max((need.count for need in needs), default=0), "replaces": change.replaces}
    if not unmet:
        said = f"{', '.join(sorted(counted)) or 'nobody'} approved; {details['needed']} needed"
        return GateResult(NAME, True, said, tuple(refused), details)
    findings = [*(Finding("", _missing(need, counted)) for need in unmet), *(_told(each) for each in protected)]
    said = f"not approved yet: {_missing(unmet[0], counted)}"
    return GateResult(NAME, False, said, (*findings, *refused), details)


def changed_paths(before: Files, after: Files) -> list[PurePosixPath]:
    """Every file that is new, gone or another one."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _of_owners(live: Files, candidate: Files, signers: AllowedSigners) -> list[_Wanted]:
    """What the live OWNERS says of each changed file, one need for all files of a line."""
    owners, found = owners_of(live), dict[Need, list[PurePosixPath]]()
    for path in changed_paths(live, candidate):
        need = owners.need(path)
        if need.count:
            found.setdefault(need, []).append(path)
    return [
        _Wanted(
            need.count,
            frozenset(signers.person(person) or person for person in need.persons) if need.persons else None,
            f"{_paths(paths)}, by {f'line {need.line} of {OWNERS}' if need.line else f'no line of {OWNERS}'}",
        )
        for need, paths in found.items()
    ]


def _of_protected(protected: Sequence[ProtectedChange]) -> list[_Wanted]:
    if not protected:
        return []
    more = f" and {len(protected) - 1} more" if len(protected) > 1 else ""
    return [_Wanted(PROTECTED_NEED, None, f"{protected[0].message}{more}")]


def _counted(
    change: Change,
    approvals: Iterable[Approval],
    signers: AllowedSigners,
    authors: Collection[str],
    now_us: int,
) -> tuple[set[str], list[Finding]]:
    """The persons whose approvals count, and why others do not."""
    counted: set[str] = set()
    refused: list[Finding] = []
    for approval in approvals:
        try:
            counted.add(approver_of(approval, change, signers, authors, now_us))
        except ApprovalRefused as error:
            refused.append(Finding("", f"an approval does not count: {error.detail}"))
    return counted, list(dict.fromkeys(refused))


def _given(need: _Wanted, counted: set[str]) -> int:
    return len(counted if need.persons is None else counted & need.persons)


def _missing(need: _Wanted, counted: set[str]) -> str:
    given = _given(need, counted)
    whom = "allowed signers" if need.persons is None else ", ".join(sorted(need.persons))
    return f"{need.count - given} more of {whom} must approve it: {need.why}"


def _told(change: ProtectedChange) -> Finding:
    return Finding(change.where, f"takes {PROTECTED_NEED} approvals: {change.message}")


def _paths(paths: Sequence[PurePosixPath]) -> str:
    shown = ", ".join(map(str, paths[:PATHS_TOLD_MAX]))
    return f"{shown} and {len(paths) - PATHS_TOLD_MAX} more" if len(paths) > PATHS_TOLD_MAX else shown
