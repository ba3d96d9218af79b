"""The one transaction of the service: bodies that retention removes → idempotency → deeds of two persons → admit →
append → tree → commit; before it, the keys of personal fields are durable, and after it, those that two persons erased
are destroyed.

Rules: a refused entry does not refuse the rest of its batch; after a rollback whatever was remembered of the log is
read again; a commit into a place that is not the log any more is a failure and no success.
It refuses: to go on with a handle that failed; whoever owns it opens another.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from audit import store
from audit.errors import EntriesRefused, LogCorrupt
from audit.personal import Vault
from audit.record import Blob, Entry
from audit.store import Position, Tail
from audit.stores import OpenLog
from policyd.errors import AuditError, PolicydError
from policyd.ledger.store import Operation
from policyd.services import erasures, retention
from policyd.services.actions import ALONE, BUDGET_SET, PERFORM
from policyd.services.admission import Admission
from policyd.services.checkpoints import Checkpoints, LogFiles
from policyd.services.idempotency import Claim, Done, KeyRows
from policyd.services.proposals import Approve, Deed, Deeds, Effect
from policyd.services.retention import Removal

_log: Final = logging.getLogger(__name__)

Outcome = Position | PolicydError
"""What a submission is answered with; one that asked something of the ledger or did something by two
persons, with an ``AdmittedPosition``."""


@dataclass(frozen=True, slots=True)
class AdmittedPosition(Position):
    """Where an entry stands, and what the ledger said: the ``admission`` or ``accounts`` of its record. Of a deed, what
    it did."""

    admission: Mapping[str, Any]


class Submission(NamedTuple):
    """An entry to append, the blobs that it names, the idempotency key that it uses up, and what it does to budgets, to
    proposals, or to the bodies whose removal it is the warrant of."""

    entry: Entry
    blobs: tuple[Blob, ...] = ()
    claim: Claim | None = None
    operation: Operation | None = None
    deed: Deed | None = None
    removal: Removal | None = None


Batch = Sequence[Submission]


class Commit:
    """The transactions on a log that is open for writing. Made anew for each opening.

    Raises ``LogCorrupt`` when the log holds fewer entries than ``answered_entries``.
    """

    def __init__(
        self,
        log: OpenLog,
        files: LogFiles,
        *,
        keys_max: int,
        answered_entries: int,
        clock_jump_us: int,
        vault: Vault,
    ) -> None:
        self._log = log
        self._vault = vault
        self._connection = log.connection
        with self._connection.begin():
            self._tail: Tail | None = Tail.read(self._connection, log.number)
            self._keys = KeyRows(self._connection, keys_max)
            self._admission = Admission(self._connection, log.number, clock_jump_us)
            self._deeds = Deeds({**PERFORM, BUDGET_SET: self._admission.set_by_two}, vault, ALONE)
            self._checkpoints = Checkpoints(self._connection, files, log.origin, log.number)
        self._checkpoints.committed()
        erasures.repeat(self._connection, vault)
        self.entries_total = self._tail.next_index
        if vault.new and self.entries_total > 0:
            _log.warning("the keys of personal fields begin anew: what other keys have encrypted stays unreadable")
        if self.entries_total < answered_entries:
            raise LogCorrupt("answered as recorded, and now missing", index=self.entries_total)

    @property
    def checkpoint_wait_s(self) -> float | None:
        """How long until entries without a checkpoint get one, by a batch or by a call without any; None: no such."""
        return self._checkpoints.wait_s if self._checkpoints.entries_open else None

    def write(self, batch: Batch, *, last: bool = False) -> list[Outcome]:
        """Append the batch in one transaction; refused entries are left out and the others go in.

        The ``last`` one ends with a checkpoint.
        """
        refused: dict[str, PolicydError] = {}
        self._vault.ready(_people(batch))
        while True:
            try:
                with self._connection.begin():
                    positions = self._append(batch, refused)
                    # An export ends with a checkpoint, and must not have the missing body without its warrant.
                    removing = any(each.removal is not None for each in batch)
                    self._checkpoints.append(list(positions.values()), now=last or removing)
            except EntriesRefused as error:
                self._forget()
                refused.update((name, AuditError(f"entry {name}: {why}")) for name, why in error.reasons.items())
                continue
            except _KeyUsedUp:
                self._forget()
                continue
            self._log.check_place()
            self._checkpoints.committed()
            if any(isinstance(each.deed, Approve) for each in batch):
                erasures.finish(self._connection, self._vault)
            assert self._tail is not None
            self.entries_total = self._tail.next_index
            return [positions.get(each.entry.id) or refused[each.entry.id] for each in batch]

    def recorded(self, batch: Batch) -> set[str]:
        """Which entries of a batch, whose end is unknown, are in the log."""
        with self._connection.begin():
            return store.recorded(self._connection, [each.entry.id for each in batch])

    def _append(self, batch: Batch, refused: dict[str, PolicydError]) -> dict[str, Position]:
        """Idempotency, then the entries: the position of each that went in; ``refused`` gets those without a claim."""
        if self._tail is None:
            self._tail = Tail.read(self._connection, self._log.number)
        self._remove([each for each in batch if each.removal is not None and each.entry.id not in refused], refused)
        claims = {
            each.entry.id: each.claim for each in batch if each.claim is not None and each.entry.id not in refused
        }
        if claims:
            refused.update(self._keys.refused(self._connection, claims))
            kept = {name: claim for name, claim in claims.items() if name not in refused}
            refused.update(self._keys.keep(self._connection, kept))
        performed = self._deeds.judge(self._connection, (each for each in batch if each.entry.id not in refused))
        refused.update(performed.refused)
        taken = [each for each in batch if each.entry.id not in refused]
        judged = self._admission.judge(self._connection, taken)
        refused.update(judged.refused)
        if claims.keys() & (judged.refused.keys() | performed.refused.keys()):
            raise _KeyUsedUp
        entries = judged.entries if not performed.effects else _with_effects(judged.entries, performed.effects)
        entries = [self._vault.seal(entry) for entry in entries]
        blobs = {blob.digest: blob for each in taken for blob in each.blobs}
        positions = store.append(self._connection, entries, blobs.values(), tail=self._tail)
        self._admission.write(self._connection)
        placed = dict(zip((entry.id for entry in entries), positions, strict=True))
        for name, admission in judged.admissions.items():
            placed[name] = AdmittedPosition(placed[name].index, placed[name].leaf_hash, admission)
        for name, effect in performed.effects.items():
            placed[name] = AdmittedPosition(placed[name].index, placed[name].leaf_hash, effect.told)
        if claims:
            self._keys.done(self._connection, dict(self._done(taken, placed)))
        return placed

    def _done(self, taken: Iterable[Submission], placed: Mapping[str, Position]) -> Iterator[tuple[bytes, Done]]:
        """What deeds under keys have done."""
        for each in taken:
            if each.claim is not None and each.deed is not None:
                position = placed[each.entry.id]
                told = position.admission if isinstance(position, AdmittedPosition) else {}
                leaf = position.leaf_hash.hex()
                yield each.claim.scope, Done(each.entry.id, self._log.origin, position.index, leaf, dict(told))

    def _remove(self, warrants: Batch, refused: dict[str, PolicydError]) -> None:
        """Bodies go before anything else is looked at, and with them what is remembered of their rows."""
        for each in warrants:
            assert each.removal is not None
            try:
                retention.perform(self._connection, self._log.number, each.removal)
            except PolicydError as error:
                refused[each.entry.id] = error
        if warrants:
            self._tail = Tail.read(self._connection, self._log.number)

    def _forget(self) -> None:
        """After a rollback, what was remembered of it did not happen."""
        self._tail = None
        self._checkpoints.forget()
        self._admission.forget()
        with self._connection.begin():
            self._keys.recount(self._connection)


def _people(batch: Batch) -> Iterator[tuple[str, str]]:
    """Whose keys the batch needs: their tenants and names."""
    for each in batch:
        search = each.entry.search
        for name, _ in each.entry.personal:
            yield search.tenant or "", name
        if each.entry.personal and search.principal is not None:
            yield search.tenant or "", search.principal


def _with_effects(entries: Sequence[Entry], effects: Mapping[str, Effect]) -> list[Entry]:
    """What two persons have done follows the entry of the approval, and both stand before the rest of the batch: the
    ledger heard of them first, and its postings are in the order of the log."""
    first = [each for entry in entries if entry.id in effects for each in (entry, *effects[entry.id].entries)]
    return [*first, *(entry for entry in entries if entry.id not in effects)]


class _KeyUsedUp(Exception):
    """The ledger has refused an entry whose key is written already: once more, without that entry."""
