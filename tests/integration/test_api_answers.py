"""What the HTTP surface answers when it is asked properly, by a real server on a real socket."""

from __future__ import annotations

import json
from typing import Any

import pytest

from audit.query import FILTERS
from policyd.api.openapi import DecisionDocument, FleetDocument, ModelPage, PoolPage
from policyd.errors import all_errors

ROUTES = {
    ("get", "/ext-authz/{path}"),
    ("post", "/ext-authz/{path}"),
    ("post", "/v1/decisions"),
    ("post", "/v1/decisions/batch"),
    ("get", "/v1/decisions"),
    ("get", "/v1/decisions/{id}"),
    ("get", "/v1/decisions/{id}/explanation"),
    ("get", "/v1/decisions/{id}/receipt"),
    ("get", "/v1/log/checkpoint"),
    ("get", "/v1/log/consistency"),
    ("get", "/v1/log/entries"),
    ("get", "/v1/log/export"),
    ("get", "/v1/log/gaps"),
    ("get", "/v1/reports/budgets"),
    ("put", "/v1/budgets/{path}"),
    ("post", "/v1/log/erasures"),
    ("get", "/v1/log/holds"),
    ("post", "/v1/log/holds"),
    ("post", "/v1/log/holds/{id}/lifting"),
    ("get", "/v1/proposals"),
    ("post", "/v1/proposals/{id}/approval"),
    ("get", "/v1/reports/decisions"),
    ("get", "/v1/reports/first-uses"),
    ("post", "/v1/decisions/{id}/settlement"),
    ("post", "/v1/decisions/{id}/reservation"),
    ("delete", "/v1/decisions/{id}/reservation"),
    ("get", "/v1/budgets"),
    ("get", "/v1/budgets/{path}"),
    ("get", "/v1/bundles/policies.tar.gz"),
    ("get", "/v1/compliance"),
    ("get", "/v1/revisions"),
    ("get", "/v1/revisions/active"),
    ("get", "/v1/revisions/{digest}/approval"),
    ("get", "/v1/waivers"),
    ("post", "/v1/revisions/rollback"),
    ("post", "/v1/revisions/webhook"),
    ("post", "/v1/revisions/{digest}/activation"),
    ("post", "/v1/revisions/{digest}/approval"),
    ("post", "/v1/waivers"),
    ("post", "/v1/waivers/break-glass"),
    ("post", "/v1/waivers/{id}/approval"),
    ("get", "/v1/pools"),
    ("get", "/v1/pools/{id}"),
    ("get", "/v1/models"),
    ("get", "/v1/fleet"),
    ("post", "/access/v1/evaluation"),
    ("post", "/access/v1/evaluations"),
    ("post", "/access/v1/search/resource"),
    ("get", "/.well-known/authzen-configuration"),
    ("post", "/v1/simulations"),
    ("post", "/v1/break-even"),
    ("get", "/metrics"),
    ("get", "/livez"),
    ("get", "/readyz"),
    ("get", "/docs/errors/{code}"),
    ("put", "/v1/budgets/{path}"),
    ("get", "/v1/log/gaps"),
    ("get", "/v1/log/holds"),
    ("post", "/v1/log/holds"),
    ("post", "/v1/log/holds/{id}/lifting"),
    ("get", "/v1/proposals"),
    ("post", "/v1/proposals/{id}/approval"),
    ("get", "/v1/reports/budgets"),
}


@pytest.fixture
def answer(api: Any, bank_chat: dict[str, Any]) -> dict[str, Any]:
    found = api.client.post("/v1/decisions", json=bank_chat)
    assert found.status_code == 200, found.text
    return found.json()


def test_a_decision_names_every_visible_pool_once(api: Any, answer: dict[str, Any]) -> None:
    assert answer["outcome"] == "allow"
    assert len(answer["ranked"]) == 3 <= answer["ranked_total"]
    total = answer["ranked_total"] + len(answer["rejected"]) + answer["hidden_total"]
    assert total == api.client.get("/v1/fleet").json()["pools_total"]
    named = [entry["pool"] for entry in (*answer["ranked"], *answer["rejected"])]
    assert len(named) == len(set(named))


def test_the_answer_carries_its_headers(api: Any, bank_chat: dict[str, Any]) -> None:
    found = api.client.post("/v1/decisions", json=bank_chat, headers={"X-Request-ID": "trace-7/a"})
    assert found.headers["x-policyd-decision-id"] == found.json()["id"]
    assert found.headers["x-request-id"] == "trace-7/a"
    assert found.headers["cache-control"] == "no-store"
    assert found.headers["x-content-type-options"] == "nosniff"
    listed = api.client.get("/v1/decisions", params={"request_id": "trace-7/a"}).json()["items"]
    assert [item["id"] for item in listed] == [found.json()["id"]]


@pytest.mark.parametrize("sent", [None, "", "a b", "x" * 129, "caf\xe9"])
def test_a_request_id_that_is_no_token_is_replaced(api: Any, sent: str | None) -> None:
    headers = {} if sent is None else {"X-Request-ID": sent.encode("latin-1")}
    made = api.client.get("/livez", headers=headers).headers["x-request-id"]
    assert made != sent
    assert len(made) == 36


def test_a_deny_is_an_answer(api: Any, bank_chat: dict[str, Any]) -> None:
    bank_chat["workload"]["resources"] = {"gpu_count": 60_000}
    found = api.client.post("/v1/decisions", json=bank_chat)
    assert found.status_code == 200
    assert found.json()["outcome"] == "deny"
    assert found.json()["ranked"] == []
    assert found.json()["denied_by"] in ("eligibility", "capacity")


def test_the_record_says_what_was_answered(api: Any, answer: dict[str, Any]) -> None:
    found = api.client.get(f"/v1/decisions/{answer['id']}")
    record = found.json()
    assert found.headers["x-policyd-decision-id"] == answer["id"]
    assert {key: record[key] for key in answer} == answer
    assert record["principal"] == "local"


def test_a_refused_request_has_a_record_and_an_explanation(api: Any, bank_chat: dict[str, Any]) -> None:
    bank_chat["workload"]["data"]["classification"] = "public"
    refused = api.client.post("/v1/decisions", json=bank_chat)
    assert (refused.status_code, refused.json()["code"]) == (403, "workload.loosens")
    listed = api.client.get("/v1/decisions", params={"request_id": refused.json()["request_id"]}).json()["items"]
    assert [(item["kind"], item["code"]) for item in listed] == [("refusal", "workload.loosens")]
    assert refused.headers["x-policyd-decision-id"] == listed[0]["id"]
    record = api.client.get(f"/v1/decisions/{listed[0]['id']}").json()
    assert record["outcome"] == "error"
    text = api.client.get(f"/v1/decisions/{listed[0]['id']}/explanation?format=text").text
    assert "Nothing was allowed." in text


@pytest.mark.parametrize(
    ("accept", "query", "is_text"),
    [
        ("text/plain", "", True),
        ("text/plain;q=0.9, application/json", "", True),
        ("application/json", "", False),
        ("*/*", "", False),
        ("text/plain", "?format=json", False),
        ("application/json", "?format=text", True),
    ],
)
def test_an_explanation_is_text_or_json(
    api: Any, answer: dict[str, Any], accept: str, query: str, is_text: bool
) -> None:
    found = api.client.get(f"/v1/decisions/{answer['id']}/explanation{query}", headers={"Accept": accept})
    assert found.status_code == 200
    assert found.headers["content-type"].startswith("text/plain" if is_text else "application/json")


def test_the_explanation_names_place_rule_and_remedy_of_every_refused_pool(api: Any, answer: dict[str, Any]) -> None:
    text = api.client.get(f"/v1/decisions/{answer['id']}/explanation?format=text").text
    for entry in answer["ranked"]:
        assert entry["pool"] in text
    for entry in answer["rejected"]:
        assert f"\n{entry['pool']} (" in text
        for violation in entry["violations"]:
            assert (
                f"{violation['policy']}.{violation['rule']} ({violation['enforcement']}), {violation['location']}"
                in text
            )
            assert violation["remedy"] in text
    assert "What the cheapest refused pools would have cost" in text


def test_the_explanation_tells_of_each_pool_what_the_fleet_declares(api: Any, answer: dict[str, Any]) -> None:
    explained = api.client.get(f"/v1/decisions/{answer['id']}/explanation").json()
    for entry in (*explained["ranked"], *explained["rejected"]):
        pool = api.client.get(f"/v1/pools/{entry['pool']}").json()
        assert entry["kind"] == pool["kind"]
        assert entry["operator"] == pool["operator"]
        assert entry["tenancy"] == pool["tenancy"]
        assert entry["evidence_checked"] == pool["evidence"]["checked"]
        assert entry["locations"] == {name: places for name, places in pool["locations"].items() if places is not None}


def _values(answer: dict[str, Any]) -> dict[str, str]:
    workload, first = answer["workload"], answer["ranked"][0]
    return {
        **{
            name: workload[name] for name in ("tenant", "project", "environment", "model", "model_version", "sla_class")
        },
        "principal": "local",
        "outcome": "allow",
        "pool": first["pool"],
        "rejected_pool": answer["rejected"][0]["pool"],
        "rule": answer["rejected"][0]["violations"][0]["rule"],
        "classification": workload["data"]["classification"],
        "data_source": workload["data"]["sources"][0],
        "mode": "enforce",
        "from": answer["time"],
        "to": "2999-01-01",
    }


def test_every_filter_of_the_search_filters(api: Any, bank_chat: dict[str, Any]) -> None:
    found = api.client.post("/v1/decisions", json=bank_chat, headers={"X-Request-ID": "filters"}).json()
    pool = api.client.get(f"/v1/pools/{found['ranked'][0]['pool']}").json()
    fleet_commit = found["fleet"]["commit"]
    values = {
        **_values(found),
        "request_id": "filters",
        "provider": pool["provider"],
        "country": pool["locations"]["processing"][0],
        **({"fleet_commit": fleet_commit} if fleet_commit else {}),
    }
    only_this = {"request_id": "filters"}
    for name, value in values.items():
        listed = api.client.get("/v1/decisions", params={**only_this, name: value}).json()
        assert [item["id"] for item in listed["items"]] == [found["id"]], name
    for name in set(FILTERS) - {"from", "to", "request_id"}:
        listed = api.client.get("/v1/decisions", params={**only_this, name: "no-such-value"})
        if listed.status_code == 200:
            assert listed.json() == {"items": [], "next": None}, name
        else:  # a filter with a closed list of values says which there are
            assert (listed.status_code, listed.json()["code"]) == (400, "request.invalid"), name
            assert "is none of" in listed.json()["findings"][0]["message"], name
    assert api.client.get("/v1/decisions", params={**only_this, "to": found["time"]}).json()["items"] == []


def test_a_search_pages_newest_first_and_misses_nothing(api: Any, bank_chat: dict[str, Any]) -> None:
    ids = [
        api.client.post("/v1/decisions", json=bank_chat, headers={"X-Request-ID": "pages"}).json()["id"]
        for _ in range(5)
    ]
    seen, cursor = [], None
    while True:
        params = {"request_id": "pages", "limit": 2, **({"cursor": cursor} if cursor else {})}
        page = api.client.get("/v1/decisions", params=params).json()
        assert len(page["items"]) <= 2
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == ids[::-1]


@pytest.mark.parametrize("path", ["/v1/pools", "/v1/models"])
def test_a_list_pages_without_loss(api: Any, path: str) -> None:
    whole = api.client.get(path, params={"limit": 1000}).json()
    assert whole["next"] is None
    seen, cursor = [], None
    while True:
        page = api.client.get(path, params={"limit": 7, **({"cursor": cursor} if cursor else {})}).json()
        seen += page["items"]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == whole["items"]


@pytest.mark.parametrize("path", ["/v1/pools", "/v1/models", "/v1/fleet", "/v1/pools/onprem-fra-h100"])
def test_what_did_not_change_is_not_sent_again(api: Any, path: str) -> None:
    first = api.client.get(path)
    assert first.status_code == 200
    assert first.headers["etag"] == f'"{api.parts.snapshot.fleet.digest}"'
    for named in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = api.client.get(path, headers={"If-None-Match": named})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    assert api.client.get(path, headers={"If-None-Match": '"sha256:0"'}).status_code == 200


def test_answers_are_as_described(api: Any, answer: dict[str, Any]) -> None:
    DecisionDocument.model_validate(answer, strict=True)
    DecisionDocument.model_validate(api.client.get(f"/v1/decisions/{answer['id']}").json(), strict=True)
    PoolPage.model_validate(api.client.get("/v1/pools").json(), strict=True)
    ModelPage.model_validate(api.client.get("/v1/models").json(), strict=True)
    FleetDocument.model_validate(api.client.get("/v1/fleet").json(), strict=True)


def test_the_description_names_exactly_what_is_there(api: Any) -> None:
    document = api.client.get("/openapi.json").json()
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described == ROUTES
    schemas = document["components"]["schemas"]
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schemas
    body = document["paths"]["/v1/decisions"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["example"]["workload"]) <= set(schemas["WorkloadRequest"]["properties"])


def test_every_code_has_its_page(api: Any) -> None:
    for error in all_errors():
        found = api.client.get(f"/docs/errors/{error.code}")
        assert found.status_code == 200
        assert found.text.startswith(f"# `{error.code}`")
    assert api.client.get("/docs/errors/..%2f..%2fpyproject").status_code == 404


def test_alive_and_ready(api: Any) -> None:
    assert api.client.get("/livez").json() == {"alive": True}
    found = api.client.get("/readyz")
    assert (found.status_code, found.json()["ready"]) == (200, True)
    names = ["server", "snapshot", "log", "facts", "revisions", "engine", "reload", "sources"]
    assert [check["name"] for check in found.json()["checks"]] == names
