"""A typed client of policyd, for code that waits and for coroutines.

    with Client("https://policyd.example", token_file=Path("/run/secrets/policyd")) as policyd:
        decision = policyd.decide({"tenant": "eu-bank", "model": "llama-3.1-70b-instruct"})

Rules: an allow is an answer whose ``outcome`` is ``allow`` and nothing else; every failure is an error of
``policyd.errors``, with the ids of request and decision; a decision is sent once, unless it has an idempotency key. It
imports no part of the server, so that a program that only asks stays small.
"""

from policyd.client.clients import AsyncClient, Client
from policyd.client.documents import (
    Approval,
    Asked,
    BreakEven,
    Budget,
    BudgetChange,
    ChangedBudgets,
    Decision,
    Entry,
    Evaluation,
    Filters,
    Fleet,
    Hold,
    Model,
    Options,
    Overrides,
    Page,
    Pool,
    PoolQuestion,
    PoolSearch,
    Proposal,
    Readiness,
    Reservation,
    RevisionApproval,
    RevisionApprovals,
    Semantic,
    Simulation,
    StoodOn,
    Traffic,
    Usage,
    Waiver,
    Workload,
)

__all__ = [
    "Approval",
    "Asked",
    "AsyncClient",
    "BreakEven",
    "Budget",
    "BudgetChange",
    "ChangedBudgets",
    "Client",
    "Decision",
    "Entry",
    "Evaluation",
    "Filters",
    "Fleet",
    "Hold",
    "Model",
    "Options",
    "Overrides",
    "Page",
    "Pool",
    "PoolQuestion",
    "PoolSearch",
    "Proposal",
    "Readiness",
    "Reservation",
    "RevisionApproval",
    "RevisionApprovals",
    "Semantic",
    "Simulation",
    "StoodOn",
    "Traffic",
    "Usage",
    "Waiver",
    "Workload",
]
