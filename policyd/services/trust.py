"""Asks the two gates of trust about a candidate: who has signed it, and whether enough persons have approved it.

Rules: what the gates judge is read here, each time anew, and they judge it without looking anywhere else; what serves
decides about what would: its OWNERS, and the signers of the running configuration. Both revisions are read as their
files say, so that a candidate can be judged where nothing of it is compiled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from policyd.core.verdict import RuleDoc
from policyd.engines.metadata import describe
from policyd.engines.source import read_source
from policyd.errors import ConfigError, RevisionError
from policyd.revision_settings import RevisionSettings
from policyd.revisions import fleet_files, policy_files
from policyd.revisions.approval_gate import NAME as APPROVAL
from policyd.revisions.approval_gate import Besides, approval_gate
from policyd.revisions.approvals import Change
from policyd.revisions.gates import GateResult
from policyd.revisions.kept import Tree
from policyd.revisions.protected_changes import FleetSide, PolicySide, Side, protected_changes
from policyd.revisions.signature_gate import NAME as SIGNATURE
from policyd.revisions.signature_gate import signature_gate
from policyd.services.clock import Now, now_us
from policyd.services.revision_approvals import Reader, approval_of, records_of, signers_of

SUFFIXES: Final = {"policy": policy_files.SUFFIXES, "fleet": fleet_files.SUFFIXES}


@dataclass
class Trust:
    """The gates of signature and approval, with all that they look at."""

    settings: RevisionSettings
    reader: Reader
    now: Now = now_us

    async def signature(self, kind: str, candidate: Tree) -> GateResult:
        """Whether an allowed signer has signed it. ``details["authors"]`` are those who cannot approve it."""
        required = self.settings.require_signed
        try:
            signers = await signers_of(self.settings)
        except ConfigError as error:
            return GateResult(SIGNATURE, False, error.detail, error.findings)
        asked = (candidate, SUFFIXES[kind], signers, self.now())
        return await asyncio.to_thread(signature_gate, *asked, required=required)

    async def approval(
        self,
        kind: str,
        candidate: Tree,
        live: Tree | None,
        authors: Collection[str] = (),
        besides: Sequence[Besides] = (),
    ) -> GateResult:
        """Whether enough persons have approved it in the place of what is live; the first revision needs nobody."""
        if live is None:
            return GateResult(APPROVAL, True, "nothing was live before, so there is nothing to take away from")
        try:
            signers = await signers_of(self.settings)
            before, after = await asyncio.to_thread(lambda: (side_of(kind, live), side_of(kind, candidate)))
        except (ConfigError, RevisionError) as error:
            return GateResult(APPROVAL, False, error.detail, error.findings)
        return approval_gate(
            Change(kind, candidate.digest, live.digest),
            [approval_of(record) for record in await records_of(self.reader, kind, candidate.digest)],
            signers,
            live.files,
            candidate.files,
            protected_changes(before, after),
            authors,
            self.now(),
            besides,
        )


def side_of(kind: str, tree: Tree) -> Side:
    """A revision as protected changes are told from it. Raises ``RevisionError`` when it cannot be read."""
    if kind == "fleet":
        return FleetSide(tree.files, fleet_files.parse_fleet(tree.files))
    rules: dict[str, dict[str, RuleDoc]] = {}
    for path, text in policy_files.policy_tree(dict(tree.files), tree.commit).modules.items():
        found, _ = describe(str(path), read_source(text))
        if found is not None:
            rules.setdefault(found.name, {}).update(found.rules)
    return PolicySide(tree.files, rules)
