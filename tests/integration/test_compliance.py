"""Placements in force, judged by a real server's revisions after these have changed under them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from policyd.bootstrap_compliance import make_compliance
from policyd.cli.main import run
from policyd.services.compliance import record


@pytest.fixture
def server(serving_with: Callable[..., Any], tmp_path: Path, repository: Path) -> Iterator[Any]:
    """A server with a fleet of its own to change."""
    shutil.copytree(repository / "examples" / "fleet", tmp_path / "fleet")
    with serving_with(fleet=str(tmp_path / "fleet")) as found:
        found.fleet = tmp_path / "fleet"
        yield found


def judged(server: Any, **options: Any) -> dict[str, Any]:
    parts = server.parts
    compliance = make_compliance(parts.settings.engine, parts.reader, parts.activation, parts.engine)
    found: dict[str, Any] = server.run(compliance.judge(30, **options)).to_json()
    return found


def reloaded(server: Any) -> None:
    async def asked() -> None:
        await server.parts.reload.ask()

    server.run(asked())
    assert server.parts.reload.fault is None


def decided(server: Any, request: dict[str, Any], **changes: Any) -> dict[str, Any]:
    answer: dict[str, Any] = server.client.post(
        "/v1/decisions", json={**request, "workload": {**request["workload"], **changes}}
    ).json()
    assert answer["outcome"] == "allow", answer
    return answer


def without_pool(fleet: Path, pool: str) -> None:
    """Take a pool out of whatever file declares it."""
    for path in sorted(fleet.glob("pools-*.yaml")):
        head, *entries = path.read_text().split("\n  - id: ")
        kept = [entry for entry in entries if entry.split("\n", 1)[0].strip() != pool]
        if len(kept) < len(entries):
            path.write_text("\n  - id: ".join([head, *kept]) + "\n")
            return
    raise AssertionError(f"nobody declares {pool}")


def test_what_runs_and_would_be_let_in_again_is_no_lapse(server: Any, bank_chat: dict[str, Any]) -> None:
    assert judged(server)["placements"] == 0
    for _ in range(3):
        decided(server, bank_chat)
    settled = decided(server, bank_chat, project="support-chat")
    server.client.post(
        f"/v1/decisions/{settled['id']}/settlement",
        json={"pool": settled["ranked"][1]["pool"], "input_tokens": 10, "output_tokens": 10},
    )
    voided = decided(server, bank_chat, environment="prod")
    server.client.delete(f"/v1/decisions/{voided['id']}/reservation")
    found = judged(server)
    assert (found["items"], found["unread"]) == ([], 0)
    # The settled one ran on another pool than the first choice; the voided one ran nowhere.
    assert (found["placements"], found["decisions"]) == (2, 4)


def test_a_pool_that_is_gone_and_a_model_that_lapses(server: Any, bank_chat: dict[str, Any]) -> None:
    answer = decided(server, bank_chat)
    deployed = decided(server, bank_chat, scope="deployment")
    first = answer["ranked"][0]["pool"]
    far = judged(server, at_us=int(time.time() * 1_000_000) + 5 * 366 * 86_400_000_000)
    assert {item["urgency"] for item in far["items"]} == {"now"}
    assert any("expire" in rule["rule"] or "overdue" in rule["rule"] for rule in far["items"][0]["violations"])

    without_pool(server.fleet, first)
    reloaded(server)
    found = judged(server)
    (lapse,) = [item for item in found["items"] if item["scope"] == "request"]
    assert (lapse["pool"], lapse["urgency"], lapse["placements"], lapse["running"]) == (first, "now", 1, 1)
    assert (lapse["example"], lapse["until"]) == (answer["id"], None)
    assert [each["rule"] for each in lapse["violations"]] == ["pool_gone"]
    ends = [item["until"] for item in found["items"] if item["scope"] == "deployment"]
    assert deployed["ranked"][0]["pool"] != first or ends[0] is not None


def test_a_tenant_that_tightens_its_floors_is_told_what_breaks_them(server: Any, bank_chat: dict[str, Any]) -> None:
    answer = decided(server, bank_chat)
    first = answer["ranked"][0]["pool"]
    country = server.parts.snapshot.fleet.pools[first].locations.processing[0]
    tenants = server.fleet / "tenants.yaml"
    text = tenants.read_text()
    start = text.index("- name: eu-bank")
    floor = text.index("residency:", start)
    line = text[floor : text.index("\n", floor)]
    other = "FR" if country != "FR" else "DE"
    tenants.write_text(text[:floor] + f"residency: [{other}]" + text[floor + len(line) :])
    reloaded(server)
    found = judged(server)
    assert found["items"], "nothing lapsed"
    lapse = next(item for item in found["items"] if item["pool"] == first)
    assert "location_not_permitted" in {each["rule"] for each in lapse["violations"]}


def test_it_is_recorded_served_and_told(server: Any, bank_chat: dict[str, Any], tmp_path: Path) -> None:
    assert server.client.get("/v1/compliance").status_code == 404
    answer = decided(server, bank_chat)
    without_pool(server.fleet, answer["ranked"][0]["pool"])
    reloaded(server)
    parts = server.parts
    compliance = make_compliance(parts.settings.engine, parts.reader, parts.activation, parts.engine)
    server.run(record(server.run(compliance.judge(30)), parts.committer))
    served = server.client.get("/v1/compliance").json()
    assert (served["event"], served["items_total"], served["urgency"]["now"]) == ("lapsed", 1, 1)
    assert served["items"][0]["rules"] == ["fleet.pool_gone"]
    assert "salt" not in served
    assert server.client.get("/v1/compliance", params={"x": "y"}).status_code == 400


def test_the_command_judges_beside_a_server_and_shows_what_the_server_found(
    server: Any, bank_chat: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ["compliance", "--data-dir", str(tmp_path / "data"), "--fleet", str(server.fleet)]
    answer = decided(server, bank_chat)
    assert run(here) == 0
    assert "all of them would be let in again" in capsys.readouterr().out
    without_pool(server.fleet, answer["ranked"][0]["pool"])
    assert run([*here, "--output", "json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["items"][0]["violations"][0]["rule"] == "pool_gone"
    assert run(["compliance", "--server", server.address]) == 1  # nothing is recorded yet
    assert run(["compliance", "--server", server.address, "--at", "2027-01-01T00:00:00Z"]) == 2
    assert run([*here, "--at", "soon"]) == 2


def test_a_server_judges_by_itself(serving_with: Callable[..., Any]) -> None:
    with serving_with(compliance={"interval_ms": 60_000}) as found:
        end = time.monotonic() + 20
        while found.client.get("/v1/compliance").status_code == 404:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert found.client.get("/v1/compliance").json()["event"] == "clear"
