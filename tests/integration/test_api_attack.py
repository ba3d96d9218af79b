"""What one identity must not learn from the answers to its own questions, over real HTTP."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.integration.conftest import ApiServer, serving
from tests.integration.test_api_bad_input import check_problem
from tests.integration.test_api_identity import BANK, Doors, Tls, bearer, granted, tokens_file

MODEL = "llama-3.1-70b-instruct"


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Generator[Doors, None, None]:
    """A server and tokens, some of them with a grant that is for every tenant and decides for none."""
    folder = tmp_path_factory.mktemp("attack")
    made = tokens_file(
        folder / "tokens.yaml",
        {"name": "bank", "grants": [granted("developer", tenant="eu-bank")]},
        {"name": "bank-monitor", "grants": [granted("developer", tenant="eu-bank"), granted("monitor")]},
        {"name": "monitor", "grants": [granted("monitor")]},
        {"name": "gone", "grants": [granted("developer", tenant="eu-banc")]},
        {"name": "auditor", "grants": [granted("auditor")]},
        {"name": "platform", "grants": [granted("platform")]},
    )
    flags = {"data_dir": folder / "data", "auth": {"tokens_file": folder / "tokens.yaml"}}
    with serving(flags) as server:
        yield server, made


@pytest.mark.parametrize("who", ["monitor", "bank-monitor", "gone"])
@pytest.mark.parametrize(
    "workload",
    [
        {"tenant": "nordic-lb", "model": MODEL},
        {"tenant": "nordic-lab", "model": MODEL},
        {"tenant": "nordic-lab", "model": "llama"},
        {"tenant": "nordic-lab", "project": "open-scienc", "model": MODEL},
        {"tenant": "nordic-lab", "environment": "prod", "model": MODEL},
        {"tenant": "nordic-lab", "model": MODEL, "data": {"residency": ["US"]}},
        {"tenant": "nordic-lab", "model": MODEL, "data": {"sources": ["genome-cohrt"]}},
        {"tenant": "nordic-lab", "model": MODEL, "sla_class": "realtime"},
    ],
)
def test_no_error_tells_of_a_tenant_that_one_may_not_act_for(doors: Doors, who: str, workload: dict[str, Any]) -> None:
    server, tokens = doors
    asked = {"subject": {"type": "tenant", "id": workload["tenant"]}, "action": {"name": "place"}}
    asked |= {"resource": {"type": "pool", "id": "x"}, "context": workload}
    for path, body in (("/v1/decisions", {"workload": workload}), ("/access/v1/evaluation", asked)):
        found = server.client.post(path, json=body, headers=bearer(tokens[who]))
        problem = check_problem(server, found, 403, "identity.forbidden")
        assert problem["detail"] == f"'token:{who}' may not act for tenant {workload['tenant']!r}"
        assert "findings" not in problem
    simulated = server.client.post("/v1/simulations", json={"workloads": [workload]}, headers=bearer(tokens[who]))
    if simulated.status_code == 200:
        assert "may not act for tenant" in simulated.json()["items"][0]["today"]["problem"]["detail"]
    else:
        check_problem(server, simulated, 403, "identity.forbidden")


def test_errors_tell_whoever_may_act_what_is_wrong(doors: Doors) -> None:
    server, tokens = doors

    def detail(who: str, **workload: Any) -> str:
        body = {"workload": {"model": MODEL, **workload}}
        return str(server.client.post("/v1/decisions", json=body, headers=bearer(tokens[who])).json()["detail"])

    assert "did you mean 'support-chat'" in detail("bank-monitor", tenant="eu-bank", project="support-chta")
    assert "did you mean 'eu-bank'" in detail("platform", tenant="eu-bnk")
    assert "name one" in detail("platform")
    assert "may not act for any tenant" in detail("monitor")
