"""What a program writes to policyd and what it reads back: the documents of HTTP as typed dictionaries.

Rules: an answer is the document as the server sent it, so a field that a newer server adds is there and breaks nothing;
names are those of the contract (`docs/reference/http.md`); what is typed here is stable, the rest is ``Any``.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, NotRequired, Required, TypedDict, TypeVar

Json = dict[str, Any]
Item = TypeVar("Item")

Outcome = Literal["allow", "deny"]


class Profile(TypedDict, total=False):
    """How the workload behaves."""

    urgency: Literal["interactive", "standard", "batch"]
    traffic: Literal["steady", "bursty", "intermittent", "scheduled"]
    task: Literal["chat", "completion", "rag", "embedding", "vision", "speech", "other"]
    memory_bound: bool


class Data(TypedDict, total=False):
    """What the workload touches. ``classification`` may be a word of the company's own map."""

    classification: str
    categories: list[str]
    residency: list[str]
    sources: list[str]


class Resources(TypedDict, total=False):
    """Lower bounds on hardware."""

    accelerators: list[str]
    gpu_count: int
    gpu_memory_gib: int


class Demand(TypedDict, total=False):
    """How much is asked for."""

    input_tokens: int
    max_output_tokens: int
    requests_per_hour: int
    duration_hours: int
    hourly: list[int]


class Workload(TypedDict, total=False):
    """What wants to run. Only ``model`` is required, with a tenant when the identity does not settle it."""

    model: Required[str]
    model_version: str
    scope: Literal["request", "deployment"]
    tenant: str
    project: str
    environment: Literal["experiment", "dev", "staging", "prod"]
    profile: Profile
    data: Data
    sla_class: str
    resources: Resources
    demand: Demand
    labels: dict[str, str]


class Options(TypedDict, total=False):
    """``reserve`` asks to hold budget; ``limit`` cuts the ranked list."""

    reserve: bool
    limit: int


class Asked(TypedDict):
    """One question of a batch."""

    workload: Workload
    options: NotRequired[Options]


Filters = TypedDict(
    "Filters",
    {
        "tenant": str, "project": str, "environment": str, "principal": str, "outcome": str, "denied_by": str,
        "pool": str, "provider": str, "country": str, "rejected_pool": str, "rule": str, "model": str,
        "model_version": str, "classification": str, "data_source": str, "sla_class": str, "mode": str, "waiver": str,
        "approver": str, "policy_commit": str, "fleet_commit": str, "request_id": str, "from": str, "to": str,
    },
    total=False,
)  # fmt: skip
"""The filters of the decision log; every one that is given must hold."""


class Violation(TypedDict):
    """Why one pool is refused."""

    policy: str
    rule: str
    enforcement: Literal["hard", "soft", "approval", "advisory"]
    location: str
    message: str
    observed: Any
    required: Any
    remedy: str
    lifted_by: NotRequired[str]


class Component(TypedDict):
    """One part of a score."""

    name: str
    value: int
    weight: int
    inputs: Json


class Cost(TypedDict):
    """Expected cost on a pool, in millionths of a US dollar."""

    micro_usd: int
    per: Literal["request", "deployment"]
    micro_usd_per_million_tokens: int | None
    basis: str
    price_status: Literal["list", "contract", "assumed"]


class Ranked(TypedDict):
    """A pool that the workload may run on."""

    pool: str
    rank: int
    score: int
    components: list[Component]
    cost: Cost
    model: Json
    backends: list[str]
    warnings: list[Violation]


class Rejected(TypedDict):
    """A pool that the workload may not run on."""

    pool: str
    violations: list[Violation]


class Position(TypedDict):
    """Where an entry stands in the log."""

    log: str
    index: int
    leaf_hash: str


class StoodOn(TypedDict):
    """What persons have lifted for a decision; None is all of the tenant's."""

    id: str
    kind: Literal["waiver", "approval", "break_glass"]
    rule: str | None
    project: str | None
    pool: str | None
    model: str | None
    approved_by: str | None
    expires_at: str


class Decision(TypedDict):
    """A decision; ``denied_by`` is there when the outcome is a deny, ``waivers`` when rules were lifted for it."""

    id: str
    outcome: Outcome
    denied_by: NotRequired[str]
    time: str
    valid_until: str
    mode: str
    workload: Json
    ranked: list[Ranked]
    ranked_total: int
    rejected: list[Rejected]
    hidden_total: int
    obligations: list[Json]
    reservation: Json | None
    sheet: str
    policy: Json
    fleet: Json
    waivers: NotRequired[list[StoodOn]]
    approval: NotRequired[Json]
    audit: Position


class Entry(TypedDict):
    """An entry of the log: a decision, or a request that brought none (``kind`` ``refusal`` or ``error``)."""

    id: str
    kind: Literal["decision", "refusal", "error"]
    outcome: Literal["allow", "deny", "error"]
    time: str
    principal: str
    request_id: str
    audit: Position


class Overrides(TypedDict, total=False):
    """What is different in a simulation; ``policies`` and ``fleet`` are names that the server's settings know."""

    without_providers: list[str]
    without_pools: list[str]
    price_percent: dict[str, int]
    weights: dict[str, int]
    time: str
    policies: str
    fleet: str


class Compared(TypedDict):
    """One workload today and in the simulation: each a decision, or ``outcome`` ``error`` with a ``problem``."""

    today: Json
    simulated: Json


class Simulation(TypedDict):
    """The compared workloads in order, and the places of those that would have no pool left."""

    items: list[Compared]
    no_pool_left: list[int]


class Evaluation(TypedDict):
    """What AuthZEN answers: whether the pool may take the workload; ``context`` says why, with the decision's id."""

    decision: bool
    context: Json


class PoolQuestion(TypedDict):
    """One question of several evaluations: may this pool take this workload."""

    pool: str
    workload: Workload


Semantic = Literal["execute_all", "deny_on_first_deny", "permit_on_first_permit"]
"""Whether all questions are answered, or those up to the first of an answer."""


class PoolSearch(TypedDict):
    """A page of the pools of which an evaluation says true, best first: ``results`` with ``id`` each; ``page`` has
    ``next_token`` (empty at the end) and ``total``."""

    results: list[Json]
    page: Json
    context: Json


class Traffic(TypedDict, total=False):
    """What is compared: a model or a workload, and how much is asked for unless the workload says it."""

    model: str
    workload: Workload
    requests_per_hour: int
    hourly: list[int]
    input_tokens: int
    output_tokens: int
    pools: list[str]
    elastic: bool


class BreakEven(TypedDict):
    """Costs of a month by pool, where the best of each kind cross, and the cheapest by rate; money in micro-USD."""

    model: str
    traffic: Json
    compared_up_to_requests_per_hour: int
    pools: list[Json]
    crossings: list[Json]
    cheapest: list[Json]
    cheapest_with_paid_hardware: list[Json]
    unpriced: list[Json]
    fleet: Revision


class Page(TypedDict, Generic[Item]):
    """A page of a list; ``next`` continues it, and is None on the last one."""

    items: list[Item]
    next: str | None


class Revision(TypedDict):
    """Which fleet this is."""

    commit: str | None
    digest: str


class Usage(TypedDict, total=False):
    """What a decision did use, as far as it was measured; see the HTTP reference."""

    pool: str
    input_tokens: int
    output_tokens: int
    requests: int
    gpu_ms: int
    micro_usd: int
    output_sha256: str


class Reservation(TypedDict):
    """A reservation after a change. ``pool`` and ``actual`` are there when it was settled now."""

    id: str
    state: Literal["held", "settled", "voided", "expired"]
    expires_at: str
    replay: bool
    pool: NotRequired[str]
    actual: NotRequired[dict[str, int]]
    accounts: list[Json]
    audit: Json


class Budget(TypedDict):
    """One limit of an account in its present window."""

    path: str
    unit: str
    pools: str | None
    limit: int
    spent: int
    reserved: int
    debt: int
    remaining: int
    spent_percent: int | None
    window: str | None
    zone: str
    starts_at: str | None
    resets_at: str | None
    projected_exhaustion: str | None
    limit_fleet: int | None
    limit_set: int | None
    thresholds: list[int]


class BudgetChange(TypedDict):
    """The entry of a change of budgets."""

    id: str
    audit: Position


class ChangedBudgets(TypedDict):
    """The budgets of an account after a change, or beside the proposal of one."""

    items: list[Budget]
    next: str | None
    change: NotRequired[BudgetChange]
    proposal: NotRequired[Json]


class RevisionApproval(TypedDict):
    """An approval of a revision; ``audit`` is there when it was sent, ``counts`` and ``said`` when it was looked up."""

    id: str
    kind: str
    digest: str
    replaces: str
    expires: str
    signer: str | None
    time: NotRequired[str]
    counts: NotRequired[bool]
    said: NotRequired[str]
    audit: NotRequired[Position]


class RevisionApprovals(TypedDict):
    """The approvals of a revision, and what serves of each kind."""

    digest: str
    live: dict[str, str]
    items: list[RevisionApproval]


class Proposal(TypedDict):
    """What one person has proposed, for another to approve; ``tenant`` None concerns all of them."""

    id: str
    action: str
    tenant: str | None
    digest: str
    document: Json
    proposed_by: str
    proposed_at: str
    expires_at: str
    audit: NotRequired[Position]


class Approval(TypedDict):
    """What was approved, and what it did; ``approval`` is the id of its entry."""

    id: str
    action: str
    tenant: str | None
    approval: str
    result: Json
    audit: Position


class Waiver(TypedDict):
    """A waiver, an approval or broken glass. None in its scope is all of the tenant's."""

    id: str
    kind: Literal["waiver", "approval", "break_glass"]
    state: Literal["waiting", "in_force", "expired", "void"]
    void_because: str | None
    tenant: str
    project: str | None
    rule: str | None
    pool: str | None
    model: str | None
    reason: str | None
    digest: str | None
    requested_by: str | None
    requested_at: str | None
    approved_by: str | None
    approved_at: str | None
    expires_at: str


class Hold(TypedDict):
    """A legal hold in force; ``subject`` None covers all that belongs to the tenant."""

    id: str
    tenant: str
    subject: str | None
    reason: str
    placed_at: str


class Pool(TypedDict):
    """A pool with its declared facts; None is a fact that nobody declared."""

    id: str
    kind: Literal["on_prem", "committed", "on_demand", "spot", "serverless", "api"]
    provider: str
    region: str
    locations: Json
    operator: Json
    tenancy: str | None
    accelerator: Json
    gpu_count: int | None
    price: Json | None
    capacity: Json | None


class Model(TypedDict):
    """One version of a model."""

    name: str
    version: str
    digest: str | None


class Fleet(TypedDict):
    """The fleet revision in force, and the names that a request may use."""

    commit: str | None
    digest: str
    pools_total: int
    tenants: list[Json]
    models: list[str]
    sla_classes: list[Json]


class Check(TypedDict):
    """Whether one part is ready, and why not."""

    name: str
    ok: bool
    reason: str | None


class Readiness(TypedDict):
    """Whether a decision would be answered now."""

    ready: bool
    checks: list[Check]
