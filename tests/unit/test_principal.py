"""Principals: a grant must cover the scope, a row must allow, and one denial outweighs them all."""

from __future__ import annotations

import pytest

from policyd.core.principal import LOCAL, Grant, Principal
from policyd.engines.entitlements import CasbinEntitlements
from tests.unit.test_entitlements import MODEL

ROWS = """
p, developer, *, decisions, decide, allow
p, developer, *, fleet, read, allow
p, auditor, *, audit, read, allow
p, frozen, bank, decisions, decide, deny
p, suspended, *, audit, read, deny
p, token:mallory, *, decisions, decide, deny
g, token:mallory, suspended, clinic
"""


@pytest.fixture(scope="module")
def entitled() -> CasbinEntitlements:
    return CasbinEntitlements.build(MODEL, ROWS, domains=["bank", "clinic"])


def decide(entitled: CasbinEntitlements, principal: Principal, *scope: str) -> bool:
    return principal.permitted(entitled, "decisions", "decide", *scope)


def test_a_grant_must_cover_the_scope(entitled: CasbinEntitlements) -> None:
    limited = Principal("token:ci", (Grant("developer", "bank", frozenset({"chat"}), frozenset({"dev", "prod"})),))
    assert decide(entitled, limited, "bank", "chat", "dev")
    assert not decide(entitled, limited, "bank", "chat", "staging")
    assert not decide(entitled, limited, "bank", "other", "dev")
    assert not decide(entitled, limited, "clinic", "chat", "dev")
    assert not decide(entitled, limited, "bank"), "what says no project is not covered by a grant for one"
    assert limited.permitted_somewhere(entitled, "fleet", "read", "bank")
    assert not limited.permitted_somewhere(entitled, "fleet", "read", "clinic")


def test_a_row_must_allow(entitled: CasbinEntitlements) -> None:
    assert not decide(entitled, Principal("token:x", (Grant("auditor"),)), "bank", "chat", "dev")
    assert not decide(entitled, Principal("token:x"), "bank", "chat", "dev")
    assert not decide(entitled, Principal("token:x", (Grant("developer"),)), "nowhere", "chat", "dev")
    # A name is no role: whoever can choose its name must not gain by it.
    assert not decide(entitled, Principal("developer"), "bank", "chat", "dev")


def test_one_denial_outweighs(entitled: CasbinEntitlements) -> None:
    both = Principal("token:x", (Grant("developer"), Grant("frozen")))
    assert not decide(entitled, both, "bank", "chat", "dev")
    assert decide(entitled, both, "clinic", "chat", "dev")
    # The role that is denied counts in the whole tenant, also where its own grant does not reach.
    elsewhere = Principal("token:x", (Grant("developer"), Grant("frozen", "bank", frozenset({"other"}))))
    assert not decide(entitled, elsewhere, "bank", "chat", "dev")
    mallory = Principal("token:mallory", (Grant("developer"), Grant("auditor")))
    assert not decide(entitled, mallory, "bank", "chat", "dev")
    assert mallory.permitted(entitled, "audit", "read", "bank")
    assert not mallory.permitted(entitled, "audit", "read", "clinic"), "the denial reaches the name through a role"


def test_tenants_of_a_principal() -> None:
    assert LOCAL.tenants is None
    assert Principal("token:x", (Grant("a", "bank"), Grant("b", "clinic"))).tenants == {"bank", "clinic"}
    assert Principal("token:x", (Grant("a", "bank"), Grant("b"))).tenants is None
    assert Principal("token:x").tenants == frozenset()


def test_the_grants_behind_a_permission(entitled: CasbinEntitlements) -> None:
    some, every = Grant("auditor", "bank", frozenset({"chat"})), Grant("developer")
    principal = Principal("token:x", (some, every))
    assert list(principal.granting(entitled, "audit", "read", "bank")) == [some]
    assert list(principal.granting(entitled, "audit", "read", "clinic")) == []


def test_grants_for_each_tenant_are_not_a_grant_for_all(entitled: CasbinEntitlements) -> None:
    def everywhere(*grants: Grant) -> bool:
        return Principal("token:x", grants).permitted_everywhere(entitled, "fleet", "read", ["bank", "clinic"])

    each = (Grant("developer", "bank"), Grant("developer", "clinic"))
    assert everywhere(Grant("developer"))
    assert not everywhere(*each)
    assert not everywhere(*each, Grant("auditor")), "a role for every tenant gives what it gives, and no more"
    assert not everywhere(Grant("developer", None, frozenset({"chat"})))
    assert not everywhere()


def test_whom_a_request_concerns(entitled: CasbinEntitlements) -> None:
    def concerns(tenant: str, *grants: Grant) -> bool:
        return Principal("token:x", grants).speaks_for(entitled, "decisions", "decide", tenant)

    assert concerns("bank", Grant("auditor", "bank")), "who was granted something there is no stranger there"
    assert concerns("clinic", Grant("developer"))
    assert not concerns("clinic", Grant("developer", "bank"), Grant("auditor"))
    assert not concerns("nowhere", Grant("developer"))
