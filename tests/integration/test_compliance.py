"""Placements in force, judged by a real server's revisions after these have changed under them."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.record import Entry, Kind, Search, encode
from audit.store import append
from policyd.bootstrap_compliance import make_compliance
from policyd.cli.main import run
from policyd.services.clock import uuid7
from policyd.services.compliance import record
from policyd.services.data_directory import DataDirectory
from policyd.services.log_reader import LogReader
from policyd.services.placements import Placements, placements_in_force
from tests.integration.test_postgresql_store import NOW_US, open_log, replica


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


def test_a_deployment_that_was_settled_runs_no_more(server: Any, bank_chat: dict[str, Any]) -> None:
    deployed = decided(server, bank_chat, scope="deployment", demand={"duration_hours": 48})
    first = deployed["ranked"][0]["pool"]
    without_pool(server.fleet, first)
    reloaded(server)
    (running,) = judged(server)["items"]
    assert (running["running"], running["urgency"]) == (1, "now")
    ended = server.client.post(f"/v1/decisions/{deployed['id']}/settlement", json={"gpu_ms": 1_000})
    assert ended.status_code == 200, ended.text
    (lapse,) = judged(server)["items"]
    assert (lapse["running"], lapse["urgency"], lapse["until"]) == (0, "soon", None)


def test_what_became_of_a_decision_may_stand_in_another_log(database: str, tmp_path: Path) -> None:
    workload = {"tenant": "t", "project": "p", "environment": "prod", "model": "m", "model_version": "1"}
    workload |= {"sla_class": "s", "profile": {"urgency": "batch", "traffic": "steady", "task": "chat"}}
    workload |= {"data": {"classification": "public", "residency": "DE"}}
    decision = {
        "outcome": "allow",
        "workload": workload,
        "sheet": "sha256:s",
        "ranked": [["first", 1, 1], ["other", 1, 1]],
    }
    ids = [uuid7(NOW_US) for _ in range(4)]
    told: dict[str, list[tuple[Kind, dict[str, Any]]]] = {
        "log/one": [("decision", {"id": ids[0], **decision}), ("decision", {"id": ids[1], **decision})],
        "log/two": [
            ("settlement", {"id": ids[2], "decision": ids[0], "pool": "other"}),
            ("void", {"id": ids[3], "decision": ids[1]}),
        ],
    }
    for name, bodies in told.items():
        with open_log(replica(database, tmp_path, name.replace("/", "-")), name) as (log, tail):
            entries = [Entry(kind, body["id"], NOW_US, encode(body, b"x" * 16), Search()) for kind, body in bodies]
            append(log.connection, entries, tail=tail)
    directory = DataDirectory(tmp_path / "data", replica(database, tmp_path, "log-one"))

    async def found() -> Placements:
        reader = await LogReader.open(directory)
        try:
            return await placements_in_force(reader, NOW_US - 1, NOW_US + 1)
        finally:
            await reader.close()

    placements = asyncio.run(found())
    (placement,) = placements.found.values()
    assert (placement.pool, placement.count, placements.unread) == ("other", 1, 0)


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
