"""Quotas of groups of pools over two processes that decide: what is full for one is full for the other."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.killed_server import served

PROD_BUDGET = '          prod: [{limit: "22000", window: month}]\n'
ASKED = {
    "workload": {
        "tenant": "eu-bank",
        "project": "support-chat",
        "environment": "prod",
        "model": "llama-3.1-70b-instruct",
    },
    "options": {"limit": 1},
}


def pool_groups(fleet: Path) -> dict[str, str]:
    documents = (yaml.safe_load(path.read_text()) for path in sorted(fleet.glob("pools-*.yaml")))
    return {pool["id"]: pool["group"] for document in documents for pool in document["pools"]}


def test_two_processes_fill_each_group_once(tmp_path: Path, repository: Path) -> None:
    fleet = tmp_path / "fleet"
    shutil.copytree(repository / "examples" / "fleet", fleet)
    groups = pool_groups(fleet)
    quotas = ", ".join(f"{{limit: 1, unit: in_flight, pools: {group}}}" for group in sorted(set(groups.values())))
    text = (fleet / "tenants.yaml").read_text()
    assert PROD_BUDGET in text
    (fleet / "tenants.yaml").write_text(text.replace(PROD_BUDGET, f"          prod: [{quotas}]\n"))
    with served(tmp_path / "data", repository, "--workers", "2", "--fleet", str(fleet)) as (_, address):

        def ask(_: int) -> Any:
            with httpx.Client(timeout=60) as client:  # on a connection of its own, which either process may take
                return client.post(f"{address}/v1/decisions", json=ASKED).json()

        with ThreadPoolExecutor(16) as callers:
            answers = list(callers.map(ask, range(32)))
        pools = [answer["ranked"][0]["pool"] for answer in answers if answer["outcome"] == "allow"]
        filled = [groups[pool] for pool in pools]
        assert len(filled) == len(set(filled)) >= 2
        assert {answer["denied_by"] for answer in answers if answer["outcome"] == "deny"} == {"budget"}
        for answer in answers:
            if answer["outcome"] == "deny":
                rules = {entry["pool"]: entry["violations"][0]["rule"] for entry in answer["rejected"]}
                assert {groups[pool] for pool, rule in rules.items() if rule == "quota_exhausted"} == set(filled)
        for answer in answers[:4]:
            record = httpx.get(f"{address}/v1/decisions/{answer['id']}").json()
            assert {name: record[name] for name in answer} == answer
