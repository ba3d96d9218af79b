"""A package that asks for a person, on both engines: refused until it is approved, and bound to the rule as it is."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from policyd.core.decide import decide
from policyd.core.facts import Facts, PoolFacts
from policyd.core.principal import LOCAL
from policyd.core.sheet import sheet_from_content
from policyd.core.snapshot import Snapshot
from policyd.core.waivers import Waiver, lift
from policyd.core.workload import WorkloadRequest
from policyd.engines.embedded import EmbeddedEngine
from policyd.engines.entitlements import CasbinEntitlements
from policyd.engines.opa import OpaEngine
from policyd.errors import PolicyInvalid
from policyd.ports import Engine
from policyd.revisions.fleet_files import load_fleet
from policyd.revisions.policy_files import load_policy_tree
from policyd.services.answers import approval_json
from policyd.services.frames import Frames
from policyd.services.sheets import SheetBook, SheetLimits

ROOT = Path(__file__).resolve().parents[2]
NOW_US = 1_795_341_600_000_000
RULE = """# METADATA
# title: A placement in this country is new
# custom:
#   enforcement: hard
#   owner: governance
#   remedy: have a person approve the country
package placement.newcomers

# METADATA
# title: Nobody has run production there before
approval contains violation if {
	input.workload.environment == "prod"
	some country in input.pool.locations.processing
	not country in data.settings.newcomers.known
	violation := {"rule": "country_is_new", "observed": country, "required": data.settings.newcomers.known}
}
"""
REQUEST = {"tenant": "eu-bank", "project": "support-chat", "environment": "prod", "model": "llama-3.1-70b-instruct"}


def tree_in(folder: Path, rule: str = RULE, known: str = "[]") -> Path:
    shutil.copytree(ROOT / "policies", folder)
    (folder / "newcomers").mkdir()
    (folder / "newcomers" / "newcomers.rego").write_text(rule)
    settings = folder / "settings.yaml"
    settings.write_text(settings.read_text() + f"  newcomers:\n    known: {known}\n")
    return folder


@pytest.mark.parametrize("name", ["embedded", "opa"])
def test_a_placement_waits_for_a_person(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    binary = str(request.getfixturevalue("opa_binary")) if name == "opa" else None
    fleet = load_fleet(ROOT / "examples" / "fleet")
    facts = Facts(
        dict.fromkeys(fleet.pools, PoolFacts(10_000, 0, True)), {"eu-bank": 0, "eu-bank/support-chat": 0}, "sha256:f"
    )

    async def run() -> None:
        engine: Engine = EmbeddedEngine(1) if binary is None else OpaEngine.child(binary)
        try:
            tree = load_policy_tree(tree_in(tmp_path / "policies"))
            policies = await engine.load(tree)
            entitled = CasbinEntitlements.build(tree.casbin_model, tree.casbin_rows, domains=fleet.tenants)
            snapshot = Snapshot(policies, fleet, entitled)
            asked = WorkloadRequest.model_validate(REQUEST)
            framed = Frames().place(snapshot, asked, LOCAL, facts, NOW_US)
            book = SheetBook(engine, SheetLimits(deadline_ms=10_000))
            document = framed.document(snapshot)
            sheet = await book.make(snapshot, framed.key, framed.normalised, document)
            workload = framed.normalised.workload
            assert not sheet.failed
            assert decide(workload, sheet, facts).denied_by == "approval_required"
            told = approval_json(sheet)
            assert told["request"] == "/v1/waivers"
            assert {rule for pool in told["pools"] for rule in pool["rules"]} == {"newcomers.country_is_new"}
            digest = policies.packages["newcomers"].rules["country_is_new"].digest
            scope = ("eu-bank", None, "newcomers", "country_is_new", digest, None, None)
            approval = Waiver("w", "approval", *scope, NOW_US, NOW_US + 1)
            lifted = lift(sheet, workload, [approval], NOW_US)
            opened = decide(workload, lifted.sheet, facts)
            assert {each.row.pool for each in opened.ranked} == {pool["pool"] for pool in told["pools"]}
            again = lift(sheet_from_content(sheet.content), workload, [approval], NOW_US)
            replayed = decide(workload, again.sheet, facts)
            assert [(each.order, each.entry) for each in replayed.ranked] == [
                (each.order, each.entry) for each in opened.ranked
            ]
            for other in (replace(approval, kind="waiver"), replace(approval, rule_digest="sha256:0")):
                assert lift(sheet, workload, [other], NOW_US).sheet is sheet
            changed = await engine.load(load_policy_tree(tree_in(tmp_path / "changed", known="[DE]")))
            assert changed.packages["newcomers"].rules["country_is_new"].digest != digest
            assert changed.packages["sla"].rules["stream_too_slow"].digest == (
                policies.packages["sla"].rules["stream_too_slow"].digest
            )
        finally:
            await engine.close()

    asyncio.run(run())


def test_an_approval_rule_names_no_enforcement(tmp_path: Path) -> None:
    faulty = RULE.replace("before\napproval", "before\n# custom:\n#   enforcement: soft\napproval")

    async def run() -> None:
        engine = EmbeddedEngine(1)
        try:
            with pytest.raises(PolicyInvalid) as raised:
                await engine.load(load_policy_tree(tree_in(tmp_path / "policies", faulty)))
            assert "it names no enforcement" in raised.value.findings[0].message
        finally:
            await engine.close()

    asyncio.run(run())
