"""Every error that policyd raises on purpose, in one tree.

    PolicydError
    ├── RequestError           the caller sent something unusable                      400, exit 2
    │   ├── UnknownName        a tenant, model, class, place … that does not exist     422, exit 2
    │   ├── TooLarge           the body is longer than the limit                       413, exit 2
    │   ├── HeadersTooLarge    the head of the request is longer than the limit        431, exit 2
    │   ├── WrongMediaType     the body is not called JSON                             415, exit 2
    │   ├── WrongMethod        the path exists and does not answer this method         405, exit 2
    │   ├── KeyReused          an idempotency key came again with another body         422, exit 2
    │   ├── KeyInProgress      a request with the same key is being answered           409, exit 1
    │   ├── AmountInvalid      an amount that is none, or beyond what is counted       422, exit 2
    │   ├── ReservationConflict  a reservation that is settled, void or another one    409, exit 1
    │   ├── ProposalClosed     a proposal that is used up, expired or another one      409, exit 1
    │   ├── RevisionConflict   a revision that does not stand where a step begins      409, exit 1
    │   ├── OnHold             a legal hold keeps what was to be erased or removed     409, exit 1
    │   ├── WaiverRefused      a waiver of what nobody may waive, or for too long      422, exit 2
    │   ├── WaiverVoid         a waiver of a rule that is not what it was              409, exit 1
    │   ├── Loosens            the request asks for less protection than its floor     403, exit 1
    │   ├── WrongHost          without authentication, a name that is not loopback     421, exit 1
    │   └── Forbidden          the identity may not act in that scope                  403, exit 1
    │       ├── SamePerson     what takes two persons was asked of one                 403, exit 1
    │       ├── BudgetRaised   a budget would be raised by one person                  403, exit 1
    │       └── BudgetFixed    a budget would pass what the fleet fixes                403, exit 1
    ├── Unauthenticated        nobody is proved to ask                                 401, exit 1
    ├── LimitReached           one principal asks more than it may                     429, exit 1
    ├── NotFound               no such decision, pool, revision                        404, exit 1
    ├── ConfigError            settings that do not load                               500, exit 2
    ├── RevisionError          a policy or fleet tree that may not go live             422, exit 1
    │   ├── FleetInvalid
    │   ├── PolicyInvalid
    │   ├── SourceRefused      a source holds what must not go live                   422, exit 1
    │   ├── SignatureRefused   a signature that does not prove what is needed         422, exit 1
    │   │   └── ApprovalRefused  an approval that does not count                       422, exit 1
    │   ├── SourceUnreachable  a source of revisions does not answer                  503, exit 1
    │   └── RevisionStale      nobody could confirm what is live for too long         503, exit 1
    ├── EngineError            a cold evaluation that brought no verdict               503, exit 1
    │   ├── EngineTimeout
    │   ├── EngineCrashed
    │   └── EngineUnavailable
    ├── Overloaded             a limit on work in progress is reached                  503, exit 1
    ├── TimedOut               the request took longer than its deadline               503, exit 1
    ├── AuditError             the log cannot take or give a record                    503, exit 1
    │   ├── AuditLocked        another process writes this data directory              409, exit 1
    │   ├── ExportFailed       a copy of the log stopped before its end                503, exit 1
    │   ├── AuditKeyUnusable   the signing key of the log is missing or wrong          503, exit 1
    │   └── AuditTampered      the log is not what was recorded and signed             503, exit 4
    │       ├── AuditRolledBack  the log is shorter than somebody has seen it          503, exit 4
    │       └── SplitView      two histories of one log contradict each other          503, exit 4
    ├── ProofRefused           a receipt, checkpoint or export that proves nothing     422, exit 4
    │   └── ExportCutOff       an export of the log that does not end                  422, exit 4
    └── ServerUnreachable      no policyd answers at an address                        502, exit 1

Rules: a deny is a result and never one of these; an error is never an allow; each class has a stable dotted ``code``
(its page is ``docs/errors/<code>.md``), an HTTP status, a CLI exit code and a remedy that tells a person what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong in a file or a request, with the place where a person can mend it.

    ``where`` is ``path:line`` for files, a variable of the environment, and a dotted field path for requests; it may be
    empty.
    """

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class PolicydError(Exception):
    """Root of the tree. ``detail`` is a sentence for a person; ``findings`` lists single faults.

    ``decision_id`` is the identifier under which the log has the error, when it was recorded. ``request_id`` and
    ``problem`` are there when a server answered with the error: the id of the request, and the document as it came.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    title: ClassVar[str] = "policyd failed"
    remedy: ClassVar[str] = "report this with the request id; nothing was allowed"

    def __init__(self, detail: str, *, findings: Sequence[Finding] = (), remedy: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.findings = tuple(findings)
        self.remedy_text = remedy or self.remedy
        self.decision_id: str | None = None
        self.request_id: str | None = None
        self.problem: Mapping[str, Any] | None = None


class RequestError(PolicydError):
    code = "request.invalid"
    http_status = 400
    exit_code = 2
    title = "The request cannot be read"
    remedy = "correct the named fields and send it again"


class UnknownName(RequestError):
    code = "request.unknown_name"
    http_status = 422
    title = "The request names something that does not exist"
    remedy = "use one of the names that the fleet declares"


class TooLarge(RequestError):
    code = "request.too_large"
    http_status = 413
    title = "The request is too long"
    remedy = "send less at once; the limit is api.body_max_bytes"


class HeadersTooLarge(RequestError):
    code = "request.headers_too_large"
    http_status = 431
    title = "The head of the request is too long"
    remedy = "send shorter headers and a shorter address"


class WrongMediaType(RequestError):
    code = "request.media_type"
    http_status = 415
    title = "The request is not called JSON"
    remedy = "send JSON with the header Content-Type: application/json"


class WrongMethod(RequestError):
    code = "request.method"
    http_status = 405
    title = "The path does not answer this method"
    remedy = "use a method that the Allow header of the answer names"


class KeyReused(RequestError):
    code = "request.key_reused"
    http_status = 422
    title = "The idempotency key was used for something else"
    remedy = "send a new key with a new request, and the same body with the same key"


class KeyInProgress(RequestError):
    code = "request.key_in_progress"
    http_status = 409
    exit_code = 1
    title = "A request with this idempotency key is in progress"
    remedy = "wait for its answer, or ask again with the same key and body"


class AmountInvalid(RequestError):
    code = "budget.amount"
    http_status = 422
    title = "The amount is none that a budget can count"
    remedy = "send whole numbers from 0 to 9007199254740991"


class ReservationConflict(RequestError):
    code = "budget.conflict"
    http_status = 409
    exit_code = 1
    title = "The reservation is not in a state for this"
    remedy = "look at what it was settled with; what has expired can still be settled"


class ProposalClosed(RequestError):
    code = "proposal.closed"
    http_status = 409
    exit_code = 1
    title = "The proposal can no longer be approved"
    remedy = "look at what is open with `policyd approve`, and propose it again"


class PushReplayed(RequestError):
    code = "revision.push_replayed"
    http_status = 409
    exit_code = 1
    title = "This word of a push was taken before"
    remedy = "nothing is to be done: the sources were looked at then; to have them looked at again, push or send SIGHUP"


class RevisionConflict(RequestError):
    code = "revision.conflict"
    http_status = 409
    exit_code = 1
    title = "The revision does not stand where this step begins"
    remedy = "look at `policyd policy log`, and take the step from where the revision stands now"


class WaiverRefused(RequestError):
    code = "waiver.refused"
    http_status = 422
    title = "This cannot be waived so"
    remedy = "name a soft or approval rule, and an end within waivers.max_duration_ms"


class WaiverVoid(RequestError):
    code = "waiver.void"
    http_status = 409
    exit_code = 1
    title = "The waiver is void"
    remedy = "read the rule as it is now, and request a new waiver for it"


class OnHold(RequestError):
    code = "audit.on_hold"
    http_status = 409
    exit_code = 1
    title = "A legal hold keeps this"
    remedy = "have two persons lift the hold, or wait until it is lifted"


class Loosens(RequestError):
    code = "workload.loosens"
    http_status = 403
    exit_code = 1
    title = "The request asks for less protection than its floor"
    remedy = "drop the loosening value, or have the floor changed in the fleet files"


class Forbidden(RequestError):
    code = "identity.forbidden"
    http_status = 403
    exit_code = 1
    title = "The identity may not act in this scope"
    remedy = "act in a tenant, project and environment that the identity is permitted in"


class SamePerson(Forbidden):
    code = "proposal.same_person"
    title = "This takes another person"
    remedy = "have somebody else approve it, with a credential of their own"


class BudgetRaised(Forbidden):
    code = "budget.raised"
    title = "Raising a budget takes a second person"
    remedy = "propose it (`propose`, or `policyd budget set --propose`), and have another person approve it"


class BudgetFixed(Forbidden):
    code = "budget.fixed"
    title = "The fleet fixes a lower limit"
    remedy = "set at most what the fleet declares; to have more, change the fleet and activate it"


class WrongHost(RequestError):
    code = "identity.host"
    http_status = 421
    exit_code = 1
    title = "The request names another host"
    remedy = "ask by 127.0.0.1 or localhost, or set up authentication to serve under another name"


class Unauthenticated(PolicydError):
    code = "identity.unauthenticated"
    http_status = 401
    title = "It is not known who asks"
    remedy = "send a token that is in force: `Authorization: Bearer …`, or a client certificate"


class LimitReached(PolicydError):
    code = "identity.limit"
    http_status = 429
    title = "This identity asks more than it may"
    remedy = "ask more slowly; the limits are settings below `limits`"


class NotFound(PolicydError):
    code = "not_found"
    http_status = 404
    title = "There is no such thing"
    remedy = "check the identifier; list what exists first"

    def __init__(
        self,
        detail: str,
        *,
        findings: Sequence[Finding] = (),
        remedy: str | None = None,
        truth: str | None = None,
    ) -> None:
        """``truth`` says that it exists and is not for this caller, who is told the same; it is for the log alone."""
        super().__init__(detail, findings=findings, remedy=remedy)
        self.truth = truth


class ConfigError(PolicydError):
    code = "config.invalid"
    http_status = 500
    exit_code = 2
    title = "The configuration does not load"
    remedy = "correct the named settings; `policyd config schema` lists them all"


class RevisionError(PolicydError):
    code = "revision.invalid"
    http_status = 422
    exit_code = 1
    title = "The revision may not go live"
    remedy = "mend the findings; the last good revision keeps serving"


class FleetInvalid(RevisionError):
    code = "fleet.invalid"
    title = "The fleet files do not hold together"
    remedy = "mend the findings and run `policyd fleet check`"


class PolicyInvalid(RevisionError):
    code = "policy.invalid"
    title = "The policies do not hold together"
    remedy = "mend the findings and run `policyd policy check`"


class SourceRefused(RevisionError):
    code = "revision.refused"
    title = "The source of revisions holds what must not go live"
    remedy = "mend what is named at the source; the last good revision keeps serving"


class SignatureRefused(RevisionError):
    code = "revision.signature"
    title = "The signature does not prove what is needed"
    remedy = "sign again with a key of the allowed signers that is in date; see docs/how-to/sign-and-approve.md"


class ApprovalRefused(SignatureRefused):
    code = "revision.approval"
    title = "The approval does not count"
    remedy = "approve the revision as it is now, with a key of the allowed signers: `policyd policy approve`"


class SourceUnreachable(RevisionError):
    code = "revision.unreachable"
    http_status = 503
    title = "The source of revisions does not answer"
    remedy = "mend the way to the source; the last good revision keeps serving"


class RevisionStale(RevisionError):
    code = "revision.stale"
    http_status = 503
    title = "The live revisions are older than is allowed"
    remedy = "mend the source that /readyz names, or raise its stale_max_ms; nothing was allowed"


class EngineError(PolicydError):
    code = "engine.failed"
    http_status = 503
    title = "The policies could not be evaluated"
    remedy = "look at the audit entry for the package that failed; nothing was allowed"


class EngineTimeout(EngineError):
    code = "engine.timeout"
    title = "The policies took longer than their deadline"
    remedy = "simplify the named package, or raise engine.deadline_ms"


class EngineCrashed(EngineError):
    code = "engine.crashed"
    title = "The policy engine died during an evaluation"
    remedy = "check the named package with `policyd policy test`; the worker was replaced"


class EngineUnavailable(EngineError):
    code = "engine.unavailable"
    title = "The policy engine cannot be reached or holds another revision"
    remedy = "start the engine, or let policyd start it; see `policyd doctor`"


class Overloaded(PolicydError):
    code = "overload"
    http_status = 503
    title = "Too much work is in progress"
    remedy = "try again later; the limits are settings"


class TimedOut(PolicydError):
    code = "timeout"
    http_status = 503
    title = "The request took longer than its deadline"
    remedy = "try again later; the limit is api.request_timeout_ms"


class FactsUnavailable(PolicydError):
    code = "facts.unavailable"
    http_status = 503
    title = "The facts are too old to decide on"
    remedy = "mend the source of facts that /readyz and the server's log name"


class AuditError(PolicydError):
    code = "audit.unavailable"
    http_status = 503
    title = "The decision log cannot be written or read"
    remedy = "free or mend the disk of the data directory, then restart; nothing was allowed"


class AuditLocked(AuditError):
    code = "audit.locked"
    http_status = 409
    title = "Another process writes this data directory"
    remedy = "ask that process (--server), or use another --data-dir"


class ExportFailed(AuditError):
    code = "audit.export_failed"
    title = "A copy of the decision log stopped before its end"
    remedy = "remove the cause and continue with --from at the entry that is named; the log is untouched"


class AuditKeyUnusable(AuditError):
    code = "audit.key"
    title = "The signing key of the log is missing or wrong"
    remedy = "put the key file that is named back, with mode 0600, or name the right public key; nothing was allowed"


class AuditTampered(AuditError):
    code = "audit.tampered"
    exit_code = 4
    title = "The decision log is not what was recorded"
    remedy = "keep the files as they are, run `policyd audit verify`, and restore the log from a backup"


class AuditRolledBack(AuditTampered):
    code = "audit.rolled_back"
    title = "The decision log is shorter than it was"
    remedy = "bring back the newest log, or go on with `policyd audit restore`; acknowledged entries are missing here"


class SplitView(AuditTampered):
    code = "audit.split_view"
    title = "The log shows another history than before"
    remedy = "keep both checkpoints: together they prove it; ask whoever runs the log"


class ProofRefused(PolicydError):
    code = "audit.proof"
    http_status = 422
    exit_code = 4
    title = "The receipt, checkpoint or export proves nothing"
    remedy = "take it again from the log, and check that the key is that of the log"


class ExportCutOff(ProofRefused):
    code = "audit.cut_off"
    title = "The export of the log is cut off"
    remedy = "resume it with `policyd audit export --file`, or copy it again as a whole"


class ServerUnreachable(PolicydError):
    code = "server.unreachable"
    http_status = 502
    title = "No policyd answers at that address"
    remedy = "start one with `policyd serve`, correct --server, or leave it out to work here; nothing was allowed"


def all_errors() -> tuple[type[PolicydError], ...]:
    """Every class of the tree, for the documentation check and the OpenAPI document."""
    found: list[type[PolicydError]] = []
    queue: list[type[PolicydError]] = [PolicydError]
    while queue:
        current = queue.pop(0)
        found.append(current)
        queue.extend(current.__subclasses__())
    return tuple(found)
