"""AuthZEN 1.0 at its edges: what it requires, ignores and denies, and that it says what the decisions say."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

JSON = {"Content-Type": "application/json"}
EVALUATION, EVALUATIONS = "/access/v1/evaluation", "/access/v1/evaluations"
SEARCH = "/access/v1/search/resource"
WRONG = (None, 1, True, 1.5, [], {}, "text")


@pytest.fixture
def ranked(api: Any, bank_chat: dict[str, Any]) -> dict[str, Any]:
    bank_chat["options"]["limit"] = 1_000
    found: dict[str, Any] = api.client.post("/v1/decisions", json=bank_chat).json()
    return found


@pytest.fixture
def asked(bank_chat: dict[str, Any], ranked: dict[str, Any]) -> dict[str, Any]:
    """An evaluation that is true."""
    context = {name: value for name, value in bank_chat["workload"].items() if name != "tenant"}
    return {
        "subject": {"type": "tenant", "id": "eu-bank"},
        "action": {"name": "place"},
        "resource": {"type": "pool", "id": ranked["ranked"][-1]["pool"]},
        "context": context,
    }


def on(asked: dict[str, Any], pool: str) -> dict[str, Any]:
    return {**asked, "resource": {"type": "pool", "id": pool}}


def evaluate(api: Any, asked: Any, path: str = EVALUATION) -> Any:
    return api.client.post(path, json=asked)


def logged(api: Any, request_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.client.get("/v1/decisions", params={"request_id": request_id}).json()["items"]
    return found


def test_a_ranked_pool_is_true_and_in_the_log(api: Any, asked: dict[str, Any]) -> None:
    found = api.client.post(EVALUATION, json=asked, headers={"X-Request-ID": "authzen-true"})
    assert (found.status_code, found.json()["decision"]) == (200, True)
    assert found.headers["x-request-id"] == "authzen-true"
    context = found.json()["context"]
    assert [entry["id"] for entry in logged(api, "authzen-true")] == [context["id"]]
    assert found.headers["x-policyd-decision-id"] == context["id"]
    record = api.client.get(f"/v1/decisions/{context['id']}").json()
    assert record["ranked"][context["rank"] - 1]["pool"] == asked["resource"]["id"]
    assert record["valid_until"] == context["valid_until"]
    assert {"name": "max_output_tokens", "value": 400} in context["obligations"]


def test_a_refused_pool_is_false_with_its_violations(api: Any, asked: dict[str, Any], ranked: dict[str, Any]) -> None:
    for refused in ranked["rejected"][:5]:
        found = evaluate(api, on(asked, refused["pool"]))
        assert (found.status_code, found.json()["decision"]) == (200, False)
        assert found.json()["context"]["violations"] == refused["violations"]
        assert refused["violations"][0]["rule"] in found.json()["context"]["reason"]


def test_a_hidden_pool_reads_like_one_that_does_not_exist(
    api: Any, asked: dict[str, Any], ranked: dict[str, Any]
) -> None:
    named = {entry["pool"] for entry in (*ranked["ranked"], *ranked["rejected"])}
    hidden = [pool for pool in api.parts.snapshot.fleet.pools if pool not in named]
    assert len(hidden) == ranked["hidden_total"] > 0
    answers = [evaluate(api, on(asked, pool)).json() for pool in (hidden[0], "no-such-pool", "", "Ü" * 300)]
    for answer in answers:
        answer["context"].pop("id")
        answer["context"].pop("valid_until")
    assert answers == [{"decision": False, "context": {"reason": "there is no such pool for this tenant"}}] * 4


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("subject", {"type": "user", "id": "eu-bank"}),
        ("subject", {"type": "tenant", "id": "alice@acmecorp.example"}),
        ("subject", {"type": "tenant", "id": "еu-bank"}),  # noqa: RUF001 - the first letter is Cyrillic
        ("subject", {"type": "tenant", "id": ""}),
        ("action", {"name": "can_read"}),
        ("resource", {"type": "account", "id": "123"}),
    ],
)
def test_what_nobody_knows_is_false(api: Any, asked: dict[str, Any], part: str, value: Any) -> None:
    found = evaluate(api, {**asked, part: value})
    assert (found.status_code, found.json()["decision"]) == (200, False)
    assert found.json()["context"]["reason"]


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ({"model": "no-such-model"}, "request.unknown_name"),
        ({"data": {"classification": "public"}}, "workload.loosens"),
    ],
)
def test_a_refused_value_is_false_with_the_problem(
    api: Any, asked: dict[str, Any], field: dict[str, Any], code: str
) -> None:
    found = evaluate(api, {**asked, "context": {**asked["context"], **field}})
    assert (found.status_code, found.json()["decision"]) == (200, False)
    context = found.json()["context"]
    assert context["problem"]["code"] == code
    assert [entry["id"] for entry in logged(api, found.headers["x-request-id"])] == [context["id"]]


REQUIRED = [
    ("subject",), ("subject", "type"), ("subject", "id"), ("action",), ("action", "name"),
    ("resource",), ("resource", "type"), ("resource", "id"), ("context", "model"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("route", "path"),
    [
        (route, path)
        for route in (EVALUATION, EVALUATIONS, SEARCH)
        for path in REQUIRED
        if (route, path) != (SEARCH, ("resource", "id"))
    ],
)
def test_a_required_field_that_is_missing_or_wrong_is_400(
    api: Any, asked: dict[str, Any], path: tuple[str, ...], route: str
) -> None:
    right = type(asked[path[0]] if len(path) == 1 else asked[path[0]][path[1]])
    broken = [copy.deepcopy(asked) for _ in range(1 + len(WRONG))]
    for place, body in enumerate(broken):
        holder = body if len(path) == 1 else body[path[0]]
        holder.pop(path[-1])
        if place:
            holder[path[-1]] = WRONG[place - 1]
    for body in broken:
        holder = body if len(path) == 1 else body[path[0]]
        if type(holder.get(path[-1])) is right and holder[path[-1]] != {}:
            continue
        found = evaluate(api, body, route)
        assert (found.status_code, found.json()["code"]) == (400, "request.invalid"), (body, found.text)


@pytest.mark.parametrize(
    "body", ["", "[]", "1", "null", '{"subject": 1, "subject": 2}', "[" * 5_000, "NaN", "1" * 9_999]
)
@pytest.mark.parametrize("route", [EVALUATION, EVALUATIONS, SEARCH])
def test_what_is_no_object_is_400(api: Any, body: str, route: str) -> None:
    found = api.client.post(route, content=body, headers=JSON)
    assert (found.status_code, found.json()["code"]) == (400, "request.invalid")


def test_context_is_an_object_when_it_is_there(api: Any, asked: dict[str, Any]) -> None:
    for value in WRONG:
        if value != {}:
            assert evaluate(api, {**asked, "context": value}).status_code == 400


def test_unknown_fields_are_ignored_and_those_of_the_context_are_told(api: Any, asked: dict[str, Any]) -> None:
    more = {name: {**asked[name], "properties": {"a": None}, "x": 10**30} for name in ("subject", "action", "resource")}
    context = {**asked["context"], "time": "2026-11-24T06:00:00Z", "daat": {"residency": ["FR"]}}
    found = evaluate(api, {**more, "context": context, "extra": [None]}).json()
    assert found["decision"] is True
    assert found["context"]["ignored"] == ["daat", "time"]


def test_a_misspelt_field_of_the_workload_is_refused(api: Any, asked: dict[str, Any]) -> None:
    asked["context"]["data"]["residncy"] = ["FR"]
    found = evaluate(api, asked)
    assert found.status_code == 400
    assert "context.data.residncy" in found.json()["detail"]


def test_another_tenant_in_the_context_is_refused(api: Any, asked: dict[str, Any]) -> None:
    assert evaluate(api, {**asked, "context": {**asked["context"], "tenant": "eu-bank"}}).status_code == 200
    assert evaluate(api, {**asked, "context": {**asked["context"], "tenant": "acme"}}).status_code == 400


def test_evaluations_have_defaults_overrides_and_order(api: Any, asked: dict[str, Any], ranked: dict[str, Any]) -> None:
    good, bad = asked["resource"], {"type": "pool", "id": ranked["rejected"][0]["pool"]}
    items = [{"resource": bad}, {}, {"action": {"name": "read"}}, {"resource": {"id": "x"}}, 5, {"resource": good}]
    found = api.client.post(
        EVALUATIONS, json={**asked, "evaluations": items}, headers={"X-Request-ID": "authzen-several"}
    )
    answers = found.json()["evaluations"]
    assert "decision" not in found.json()
    assert [answer["decision"] for answer in answers] == [False, True, False, False, False, True]
    assert [answer["context"].get("problem", {}).get("status") for answer in answers] == [None] * 3 + [400, 400, None]
    decided = {answer["context"]["id"] for answer in answers if "id" in answer["context"]}
    assert {entry["id"] for entry in logged(api, "authzen-several")} == decided
    assert len(decided) == 3


def test_an_item_of_evaluations_may_bring_everything(api: Any, asked: dict[str, Any]) -> None:
    assert evaluate(api, {"evaluations": [asked]}, EVALUATIONS).json()["evaluations"][0]["decision"] is True


@pytest.mark.parametrize(
    ("semantic", "expected"),
    [
        ("execute_all", [True, False, True, False]),
        ("deny_on_first_deny", [True, False]),
        ("permit_on_first_permit", [True]),
    ],
)
def test_the_semantics(
    api: Any, asked: dict[str, Any], ranked: dict[str, Any], semantic: str, expected: list[bool]
) -> None:
    bad = {"resource": {"type": "pool", "id": ranked["rejected"][0]["pool"]}}
    body = {**asked, "evaluations": [{}, bad, {}, bad], "options": {"evaluations_semantic": semantic, "other": 1}}
    request_id = f"authzen-{semantic}"
    found = api.client.post(EVALUATIONS, json=body, headers={"X-Request-ID": request_id}).json()["evaluations"]
    assert [answer["decision"] for answer in found] == expected
    assert len(logged(api, request_id)) == len(expected)
    turned = {**body, "evaluations": [bad, {}, bad, {}]}
    found = evaluate(api, turned, EVALUATIONS).json()["evaluations"]
    assert [answer["decision"] for answer in found] == {
        "execute_all": [False, True, False, True],
        "deny_on_first_deny": [False],
        "permit_on_first_permit": [False, True],
    }[semantic]


@pytest.mark.parametrize("more", [{}, {"evaluations": []}, {"evaluations": [], "options": {}}])
def test_without_evaluations_it_is_a_single_one(api: Any, asked: dict[str, Any], more: dict[str, Any]) -> None:
    found = evaluate(api, {**asked, **more}, EVALUATIONS).json()
    assert found["decision"] is True
    assert "evaluations" not in found


@pytest.mark.parametrize(
    "more",
    [
        {"evaluations": None}, {"evaluations": {}}, {"evaluations": "x"}, {"options": []}, {"options": None},
        {"options": {"evaluations_semantic": "all"}}, {"options": {"evaluations_semantic": []}}, {"subject": 1},
    ],
)  # fmt: skip
def test_evaluations_of_the_wrong_type_are_400(api: Any, asked: dict[str, Any], more: dict[str, Any]) -> None:
    assert evaluate(api, {**asked, "evaluations": [{}], **more}, EVALUATIONS).status_code == 400


def test_too_many_evaluations(api: Any, asked: dict[str, Any]) -> None:
    assert evaluate(api, {**asked, "evaluations": [{}] * 101}, EVALUATIONS).status_code == 413


def test_a_search_says_what_the_evaluations_say(api: Any, asked: dict[str, Any], ranked: dict[str, Any]) -> None:
    found = api.client.post(SEARCH, json=asked, headers={"X-Request-ID": "authzen-search"})
    results = [entry["id"] for entry in found.json()["results"]]
    assert results == [entry["pool"] for entry in ranked["ranked"]]
    assert found.json()["page"] == {"next_token": "", "count": len(results), "total": len(results)}
    assert [entry["id"] for entry in logged(api, "authzen-search")] == [found.json()["context"]["id"]]


def every_pool(api: Any, body: dict[str, Any]) -> dict[str, bool]:
    """What an evaluation says of each pool of the fleet."""
    pools = list(api.parts.snapshot.fleet.pools)
    found: dict[str, bool] = {}
    for start in range(0, len(pools), 100):
        part = pools[start : start + 100]
        items = [{"resource": {"type": "pool", "id": pool}} for pool in part]
        answers = evaluate(api, {**body, "evaluations": items}, EVALUATIONS).json()["evaluations"]
        found |= {pool: answer["decision"] for pool, answer in zip(part, answers, strict=True)}
    return found


CONTEXTS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["llama-3.1-70b-instruct", "llama-3.1-8b-instruct", "no-such-model"]),
        "project": st.sampled_from(["support-chat", "advisor-chat"]),
    },
    optional={
        "environment": st.sampled_from(["prod", "dev", "experiment"]),
        "data": st.fixed_dictionaries(
            {}, optional={"classification": st.sampled_from(["restricted", "public"]), "residency": st.just(["DE"])}
        ),
        "resources": st.fixed_dictionaries({"gpu_count": st.sampled_from([1, 2, 8, 60_000])}),
        "demand": st.fixed_dictionaries({"input_tokens": st.sampled_from([10, 100_000])}),
    },
)


@settings(max_examples=10)
@example({"model": "llama-3.1-8b-instruct", "project": "support-chat", "environment": "experiment"}, "eu-bank", 1)
@given(context=CONTEXTS, tenant=st.sampled_from(["eu-bank", "nobody"]), limit=st.integers(1, 40))
def test_search_equals_evaluation(api: Any, context: dict[str, Any], tenant: str, limit: int) -> None:
    body = {"subject": {"type": "tenant", "id": tenant}, "action": {"name": "place"}, "context": context}
    search = {**body, "resource": {"type": "pool"}, "page": {"limit": limit}}
    results: list[str] = []
    for _ in range(200):
        found = evaluate(api, search, SEARCH)
        if found.status_code == 403:  # a scope that the identity may not act in, which is no answer about pools
            assert evaluate(api, {**body, "resource": {"type": "pool", "id": "none"}}, EVALUATION).status_code == 403
            break
        assert found.status_code == 200, found.text
        page = found.json()["page"]
        assert page["count"] == len(found.json()["results"]) <= limit
        results += [entry["id"] for entry in found.json()["results"]]
        if not page["next_token"]:
            break
        search["page"] = {"limit": limit, "token": page["next_token"]}
    assert len(results) == len(set(results))
    assert set(results) == {pool for pool, said in every_pool(api, body).items() if said}


def test_a_token_continues_its_own_search_only(api: Any, asked: dict[str, Any]) -> None:
    first = evaluate(api, {**asked, "page": {"limit": 1}}, SEARCH).json()
    token = first["page"]["next_token"]
    assert token
    second = evaluate(api, {**asked, "page": {"limit": 1, "token": token}}, SEARCH).json()
    assert second["results"] != first["results"]
    changed = {**asked["context"], "environment": "dev"}
    for body in (
        {**asked, "page": {"limit": 2, "token": token}},
        {**asked, "context": changed, "page": {"limit": 1, "token": token}},
        {**asked, "page": {"limit": 1, "token": token[:-2]}},
        {**asked, "page": {"token": 5}},
        {**asked, "page": {"limit": -1}},
        {**asked, "page": {"limit": True}},
        {**asked, "page": []},
    ):
        assert evaluate(api, body, SEARCH).status_code == 400


def test_a_search_with_what_nobody_knows_is_empty(api: Any, asked: dict[str, Any]) -> None:
    for part in ({"resource": {"type": "account"}}, {"subject": {"type": "tenant", "id": "nobody"}}):
        found = evaluate(api, {**asked, **part}, SEARCH)
        assert (found.status_code, found.json()["results"]) == (200, [])
        assert found.json()["page"] == {"next_token": "", "count": 0, "total": 0}
        assert found.json()["context"]["reason"]


def test_a_broken_log_is_never_true(serving_with: Any, asked: dict[str, Any]) -> None:
    with serving_with() as server:
        assert evaluate(server, asked).json()["decision"] is True
        path = server.parts.directory.log_path
        path.rename(path.with_suffix(".gone"))
        assert evaluate(server, asked).status_code == 503
        assert evaluate(server, asked, SEARCH).status_code == 503
        answers = evaluate(server, {**asked, "evaluations": [{}, {}]}, EVALUATIONS).json()["evaluations"]
        assert [answer["decision"] for answer in answers] == [False, False]


def test_discovery_names_the_address_that_is_reached(api: Any, serving_with: Any) -> None:
    path = "/.well-known/authzen-configuration"
    found = api.client.get(path, headers={"Host": "evil.example"}).json()
    assert found["policy_decision_point"] == api.address
    for name, address in found.items():
        if name != "policy_decision_point":
            assert api.client.post(address, content="{}", headers=JSON).status_code == 400
    with serving_with(api={"public_url": "https://policyd.example/decisions"}) as server:
        found = server.client.get(path).json()
    assert found["access_evaluation_endpoint"] == "https://policyd.example/decisions/access/v1/evaluation"


def test_an_evaluation_is_json(api: Any, asked: dict[str, Any]) -> None:
    found = api.client.post(EVALUATION, content=json.dumps(asked), headers={"Content-Type": "text/plain"})
    assert found.status_code == 415
