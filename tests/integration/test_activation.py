"""What goes live goes live whole: denials that deny nothing refuse a pair of revisions, and what fails is recorded."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from policyd.bootstrap import make_entitlements, running
from policyd.core.principal import LOCAL, Grant, Principal
from policyd.core.workload import DecisionRequest
from policyd.errors import PolicydError, PolicyInvalid
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.policy_files import load_policy_tree
from policyd.services.activation import dead_denials
from policyd.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
FLEET = load_fleet(ROOT / "examples" / "fleet")
TREE = load_policy_tree(ROOT / "policies")
BANK = DecisionRequest.model_validate({"workload": {"tenant": "eu-bank", "model": "llama-3.1-70b-instruct"}})


def denied(row: str) -> list[str]:
    entitlements = make_entitlements(TREE.casbin_model, f"{TREE.casbin_rows}\n{row}\n", FLEET)
    return [finding.message for finding in dead_denials(entitlements, FLEET)]


def test_the_shipped_denials_deny_something() -> None:
    entitlements = make_entitlements(TREE.casbin_model, TREE.casbin_rows, FLEET)
    assert entitlements.denials
    assert dead_denials(entitlements, FLEET) == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("p, tenant:globex-saas, globex-saas, neocloud-globl, place, deny", "did you mean 'neocloud-global'"),
        ("p, tenant:globex-saas, globex-sas, neocloud-global, place, deny", "did you mean 'globex-saas'"),
        ("p, tenant:globex-sas, globex-saas, neocloud-global, place, deny", "neither a tenant nor a role"),
        ("p, markt, *, neocloud-global, place, deny", "neither a tenant nor a role"),
        ("p, tenant:globex-sas, *, neocloud-global, view, deny", "neither a tenant nor a role"),
    ],
)
def test_a_slip_in_a_row_that_denies_is_a_finding(row: str, said: str) -> None:
    (found,) = denied(row)
    assert said in found


@pytest.mark.parametrize(
    "row",
    [
        "p, market, *, neocloud-global, place, deny",
        "p, tenant:eu-bank, eu-bank, spot-eu, place, deny",
        "p, auditor, *, audit, erase, deny",
    ],
)
def test_a_row_that_denies_something_is_none(row: str) -> None:
    assert denied(row) == []


def test_a_pair_with_a_dead_denial_never_serves_and_the_live_one_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(load_settings(environment={}, flags={"data_dir": tmp_path})) as up:
            live = up.snapshot
            row = "\np, tenant:globex-saas, globex-saas, neocloud-globl, place, deny\n"
            slipped = replace(TREE, digest="sha256:slipped", casbin_rows=TREE.casbin_rows + row)
            with pytest.raises(PolicyInvalid, match="denies nothing"):
                await up.activation.activate(slipped, FLEET)
            # The same policies again, so that a careless clean-up would take them from under the live snapshot.
            with pytest.raises(PolicyInvalid):
                await up.activation.activate(replace(slipped, digest=TREE.digest), FLEET)
            assert up.snapshot is live
            up.book.clear()
            assert (await up.decisions.decide(BANK, LOCAL, "after")).made.decision.outcome == "allow"

    asyncio.run(run())


def test_a_reload_from_another_commit_names_that_commit(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(load_settings(environment={}, flags={"data_dir": tmp_path})) as up:
            await up.activation.activate(replace(TREE, commit="f" * 40), FLEET)
            answered = await up.decisions.decide(BANK, LOCAL, "commit")
            assert orjson.loads(answered.body)["policy"]["commit"] == "f" * 40

    asyncio.run(run())


def test_going_back_takes_the_snapshot_that_is_still_there_by_its_new_name(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(load_settings(environment={}, flags={"data_dir": tmp_path})) as up:
            first = await up.activation.activate(TREE, FLEET)
            await up.decisions.decide(BANK, LOCAL, "first")
            held = up.book.counts.computed
            other = replace(TREE, digest="sha256:other", data=dict(TREE.data))
            assert (await up.activation.activate(other, FLEET)).entitlements is not first.entitlements
            back = await up.activation.activate(replace(TREE, commit="f" * 40), FLEET)
            assert back.entitlements is first.entitlements, "it was built anew"
            assert back.digest == first.digest
            answered = await up.decisions.decide(BANK, LOCAL, "back")
            assert orjson.loads(answered.body)["policy"]["commit"] == "f" * 40
            assert up.book.counts.computed == held, "its sheets are still there"
            entries = await up.reader.search({}, kinds=["revision"])
            assert next(iter(entries.items)).document()["policy"][0] == "f" * 40

    asyncio.run(run())


def test_a_fault_that_nobody_foresaw_is_recorded_and_allows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with running(load_settings(environment={}, flags={"data_dir": tmp_path})) as up:

            def fail(*_: Any) -> None:
                raise ZeroDivisionError("a bug")

            monkeypatch.setattr("policyd.services.decisions.decide", fail)
            with pytest.raises(PolicydError, match="ZeroDivisionError") as raised:
                await up.decisions.decide(BANK, LOCAL, "bug")
            record = await up.reader.by_id(str(raised.value.decision_id))
            assert record.kind == "error"
            assert orjson.loads(record.body)["code"] == "internal"

    asyncio.run(run())


def test_an_identity_without_the_entitlement_to_decide_is_refused_and_recorded(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(load_settings(environment={}, flags={"data_dir": tmp_path})) as up:
            with pytest.raises(PolicydError) as raised:
                await up.decisions.decide(BANK, Principal("somebody", (Grant("nobody"),)), "who")
            assert raised.value.code == "identity.forbidden"
            assert (await up.reader.by_id(str(raised.value.decision_id))).kind == "refusal"

    asyncio.run(run())
