"""The route that a proxy asks: what it reads, what it answers, and what it does not tell."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
PATH = "/ext-authz/v1/chat/completions"
BANK = {
    "x-policyd-tenant": "eu-bank",
    "x-policyd-project": "support-chat",
    "x-policyd-model": "llama-3.1-70b-instruct",
}


def ask(api: Any, headers: dict[str, str] | list[tuple[str, str]], path: str = PATH) -> httpx.Response:
    answer: httpx.Response = api.client.get(path, headers=headers)
    return answer


def test_an_allow_names_the_first_ranked_pool_and_its_entry(api: Any) -> None:
    answer = ask(api, BANK)
    assert (answer.status_code, answer.content) == (200, b"")
    record = api.client.get(f"/v1/decisions/{answer.headers['x-policyd-decision-id']}").json()
    assert record["ranked"][0]["pool"] == answer.headers["x-policyd-pool"]
    assert record["request_id"] == answer.headers["x-request-id"]
    assert record["reservation"] is None


def test_a_post_is_answered_as_a_get_whatever_its_body(api: Any) -> None:
    answer = api.client.post(PATH, headers=BANK, content=b"\xff not JSON")
    assert answer.headers["x-policyd-pool"] == ask(api, BANK).headers["x-policyd-pool"]


def test_the_path_and_the_query_of_the_client_change_nothing(api: Any) -> None:
    for path in ("/ext-authz/", f"{PATH}?tenant=spark-startup&x-policyd-pool=x", "/ext-authz/a%2Fb/../c"):
        assert ask(api, BANK, path).status_code == 200


def test_the_pool_is_the_first_ranked_one_in_reach(api: Any) -> None:
    first = ask(api, BANK)
    ranked = api.client.get(f"/v1/decisions/{first.headers['x-policyd-decision-id']}").json()["ranked"]
    third, last = ranked[2]["pool"], ranked[-1]["pool"]
    answer = ask(api, {**BANK, "x-policyd-pools": f"{last}, aws-us-east-1-h100,{third}"})
    assert answer.headers["x-policyd-pool"] == third


def test_pools_that_are_left_and_not_in_reach_are_no_allow(api: Any) -> None:
    answer = ask(api, {**BANK, "x-policyd-pools": "aws-us-east-1-h100,no-such-pool"})
    assert answer.status_code == 403
    assert answer.json()["denied_by"] is None
    assert "x-policyd-pool" not in answer.headers


def test_a_denial_says_where_the_reasons_are_and_none_of_them(api: Any) -> None:
    answer = ask(api, {**BANK, "x-policyd-model": "gpt-4o-mini"})
    told = answer.json()
    assert (answer.status_code, told["outcome"], told["denied_by"]) == (403, "deny", "eligibility")
    assert set(told) == {"outcome", "denied_by", "detail", "decision_id", "request_id"}
    assert api.client.get(f"/v1/decisions/{told['decision_id']}").json()["outcome"] == "deny"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 400, "request.invalid"),
        ({"x-policyd-tenant": "eu-bank"}, 400, "request.invalid"),
        ({**BANK, "x-policyd-tenant": "eu-bank, spark-startup"}, 400, "request.invalid"),
        ({**BANK, "x-policyd-tenant": "eu-banc"}, 422, "request.unknown_name"),
        ({**BANK, "x-policyd-classification": "public"}, 403, "workload.loosens"),
        ({**BANK, "x-policyd-environment": "production"}, 400, "request.invalid"),
        ({**BANK, "x-policyd-projekt": "x"}, 400, "request.invalid"),
        ({**BANK, "x-policyd-pool": "onprem-fra-h100"}, 400, "request.invalid"),
        ({**BANK, "x-policyd-pools": ","}, 400, "request.invalid"),
        ({**BANK, "x-policyd-project": ""}, 400, "request.invalid"),
        ([*BANK.items(), ("X-Policyd-Tenant", "spark-startup")], 400, "request.invalid"),
    ],
)
def test_what_is_no_question_is_no_allow(api: Any, headers: Any, status: int, code: str) -> None:
    answer = ask(api, headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert "x-policyd-pool" not in answer.headers


def test_a_misspelt_header_is_refused_with_the_nearest_name(api: Any) -> None:
    assert "x-policyd-project" in ask(api, {**BANK, "x-policyd-projekt": "x"}).json()["detail"]


def test_methods_that_no_model_is_asked_with_are_refused(api: Any) -> None:
    answer = api.client.request("DELETE", PATH, headers=BANK)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")


def test_a_proxy_is_held_to_the_budget(serving_with: Any, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    shutil.copytree(EXAMPLES / "fleet", fleet)
    tenants = (fleet / "tenants.yaml").read_text()
    limit = 'prod: [{limit: "22000", window: month}]'
    assert limit in tenants
    (fleet / "tenants.yaml").write_text(tenants.replace(limit, 'prod: [{limit: "0", window: month}]'))
    with serving_with(fleet=fleet, facts={"path": EXAMPLES / "facts.yaml"}) as server:
        answer = ask(server, {**BANK, "x-policyd-environment": "prod"})
        assert (answer.status_code, answer.json()["denied_by"]) == (403, "budget")
