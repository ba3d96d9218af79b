"""Two tenants of one real server, each with a token: over every route that answers, neither learns of the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.integration.test_api_identity import bearer, granted, tokens_file
from tests.killed_server import served

MODEL = "llama-3.1-70b-instruct"
ABSENT = "01990000-0000-7000-8000-000000000000"
BANK, CLINIC = "eu-bank", "st-anna-hospital"
OWN_POOL, NO_POOL = "hospital-muc-h100", "hospital-mud-h100"
"""One stands in the clinic's own building, and nobody else sees it; the other is none, with a name as near to those of
pools that the bank sees."""

Two = dict[str, httpx.Client]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """A client of each tenant, and one of an auditor of all."""
    folder = tmp_path_factory.mktemp("two")
    made = tokens_file(
        folder / "tokens.yaml",
        {"name": "bank", "grants": [granted("developer", tenant=BANK)]},
        {"name": "clinic", "grants": [granted("developer", tenant=CLINIC)]},
        {"name": "auditor", "grants": [granted("auditor")]},
    )
    (folder / "policyd.yaml").write_bytes(orjson.dumps({"auth": {"tokens_file": str(folder / "tokens.yaml")}}))
    repository = Path(__file__).resolve().parents[2]
    with served(folder / "data", repository) as (_, address), ExitStack() as stack:
        yield {
            name: stack.enter_context(httpx.Client(base_url=address, headers=bearer(token), timeout=30))
            for name, token in made.items()
        }


def asked(tenant: str | None = None) -> dict[str, Any]:
    return {"workload": {"model": MODEL, **({"tenant": tenant} if tenant else {})}}


def decided(client: httpx.Client, **headers: str) -> dict[str, Any]:
    answer = client.post("/v1/decisions", json={**asked(), "options": {"limit": 1_000}}, headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def told(answer: httpx.Response, *names: str) -> tuple[int, str]:
    """Status and words of an answer, without what is its own: its request id, and the names that were asked for."""
    document = answer.json()
    document.pop("request_id", None)
    text = orjson.dumps(document).decode()
    for name in names:
        text = text.replace(name, "NAME")
    return answer.status_code, text


@pytest.mark.parametrize("suffix", ["", "/explanation", "/explanation?format=text", "/receipt"])
def test_a_decision_of_the_other_reads_like_none(two: Two, suffix: str) -> None:
    theirs, ours = decided(two["clinic"])["id"], decided(two["bank"])["id"]
    for reader, entry in (("bank", theirs), ("clinic", ours)):
        hidden = two[reader].get(f"/v1/decisions/{entry}{suffix}")
        nothing = two[reader].get(f"/v1/decisions/{ABSENT}{suffix}")
        assert hidden.status_code == 404
        assert told(hidden, entry) == told(nothing, ABSENT)
    if suffix != "/receipt":
        assert two["bank"].get(f"/v1/decisions/{ours}{suffix}").status_code == 200
        assert two["auditor"].get(f"/v1/decisions/{theirs}{suffix}").status_code == 200


def test_a_search_finds_ones_own(two: Two) -> None:
    for client in (two["bank"], two["clinic"]):
        decided(client)

    def tenants(name: str, **filters: str) -> set[str]:
        items = two[name].get("/v1/decisions", params={"limit": "1000", "outcome": "allow", **filters}).json()["items"]
        return {item["workload"]["tenant"] for item in items}

    assert tenants("bank") == {BANK}
    assert tenants("clinic") == {CLINIC}
    assert tenants("bank", tenant=CLINIC) == tenants("bank", pool=OWN_POOL) == set()
    assert {BANK, CLINIC} <= tenants("auditor")
    hidden = two["bank"].get("/v1/decisions", params={"rejected_pool": OWN_POOL})
    assert hidden.json()["items"] == []
    # A cursor of one continues nothing of it for the other.
    cursor = two["clinic"].get("/v1/decisions", params={"limit": "1"}).json()["next"]
    if cursor is not None:
        carried = two["bank"].get("/v1/decisions", params={"limit": "1", "cursor": cursor})
        assert CLINIC not in carried.text


def test_what_is_claimed_for_the_other_is_refused_and_kept_from_it(two: Two) -> None:
    claimed = two["bank"].post("/v1/decisions", json=asked(CLINIC))
    unknown = two["bank"].post("/v1/decisions", json=asked("st-ann-hospital"))
    assert claimed.status_code == 403
    assert told(claimed, CLINIC) == told(unknown, "st-ann-hospital")
    entry = claimed.headers["x-policyd-decision-id"]
    assert two["clinic"].get(f"/v1/decisions/{entry}").status_code == 404
    assert two["bank"].get(f"/v1/decisions/{entry}").status_code == 200


def test_a_batch_is_refused_item_by_item(two: Two) -> None:
    items = two["bank"].post("/v1/decisions/batch", json={"requests": [asked(), asked(CLINIC)]}).json()["items"]
    assert [item["status"] for item in items] == [200, 403]
    assert items[0]["decision"]["workload"]["tenant"] == BANK


def test_the_same_key_is_another_key(two: Two) -> None:
    key = {"Idempotency-Key": "the-same-key"}
    ours, theirs = decided(two["bank"], **key), decided(two["clinic"], **key)
    assert ours["id"] != theirs["id"]
    assert decided(two["bank"], **key)["id"] == ours["id"]
    assert decided(two["clinic"], **key)["id"] == theirs["id"]


def test_the_fleet_is_ones_own_part(two: Two) -> None:
    seen = {
        name: {pool["id"] for pool in two[name].get("/v1/pools", params={"limit": "1000"}).json()["items"]}
        for name in ("bank", "clinic")
    }
    assert OWN_POOL in seen["clinic"] - seen["bank"]
    hidden, nothing = two["bank"].get(f"/v1/pools/{OWN_POOL}"), two["bank"].get(f"/v1/pools/{NO_POOL}")
    assert told(hidden, OWN_POOL) == told(nothing, NO_POOL)
    fleet = two["bank"].get("/v1/fleet")
    assert [tenant["name"] for tenant in fleet.json()["tenants"]] == [BANK]
    answer = decided(two["bank"])
    assert answer["hidden_total"] > 0
    compared = two["bank"].post("/v1/break-even", json={"model": MODEL, "requests_per_hour": 100})
    texts = [fleet.text, orjson.dumps(answer).decode(), compared.text, two["bank"].get("/v1/models").text]
    texts.append(two["bank"].get(f"/v1/decisions/{answer['id']}/explanation?format=text").text)
    assert all("hospital" not in text for text in texts)


def test_a_simulation_tells_nothing_of_the_other(two: Two) -> None:
    found = two["bank"].post("/v1/simulations", json={"workloads": [asked(CLINIC)["workload"], asked()["workload"]]})
    theirs, ours = found.json()["items"]
    for side in ("today", "simulated"):
        assert theirs[side]["problem"]["code"] == "identity.forbidden"
        assert ours[side]["workload"]["tenant"] == BANK
    assert OWN_POOL not in found.text
    answers = []
    for pool in (OWN_POOL, NO_POOL):
        body = {"workloads": [asked()["workload"]], "overrides": {"without_pools": [pool]}}
        answers.append(told(two["bank"].post("/v1/simulations", json=body), pool))
    assert answers[0] == answers[1]
    assert answers[0][0] == 422


def test_authzen_finds_ones_own(two: Two) -> None:
    def question(tenant: str, pool: str | None = None) -> dict[str, Any]:
        resource = {"type": "pool", **({"id": pool} if pool else {})}
        subject, action = {"type": "tenant", "id": tenant}, {"name": "place"}
        return {"subject": subject, "action": action, "resource": resource, "context": {"model": MODEL}}

    searched = two["bank"].post("/access/v1/search/resource", json=question(BANK))
    assert searched.json()["results"]
    assert OWN_POOL not in searched.text
    assert two["bank"].post("/access/v1/search/resource", json=question(CLINIC)).status_code == 403
    contexts = []
    for pool in (OWN_POOL, NO_POOL):
        answer = two["bank"].post("/access/v1/evaluation", json=question(BANK, pool)).json()
        assert answer["decision"] is False
        contexts.append({name: value for name, value in answer["context"].items() if name not in ("id", "valid_until")})
    assert contexts[0] == contexts[1], "a hidden pool reads like none"
    several = two["bank"].post("/access/v1/evaluations", json={"evaluations": [question(CLINIC, OWN_POOL)]})
    assert [answer["decision"] for answer in several.json()["evaluations"]] == [False]


def test_a_report_counts_ones_own(two: Two) -> None:
    for client in (two["bank"], two["clinic"]):
        decided(client)
    for by in ("tenant", "provider", "rule", "pool"):
        counted = two["bank"].get("/v1/reports/decisions", params={"by": by})
        assert counted.status_code == 200, counted.text
        assert "hospital" not in counted.text, by
    assert "hospital" not in two["bank"].get("/v1/reports/first-uses").text
