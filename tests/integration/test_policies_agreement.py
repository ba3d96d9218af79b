"""The shipped packages give the same exports on the embedded engine and on a real OPA, whatever the facts."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from policyd.core.projection import project
from policyd.core.verdict import Answer, PolicySet, Question
from policyd.engines.embedded import EmbeddedEngine
from policyd.revisions.policy_files import load_policy_tree

COUNTRIES = ["DE", "FR", "SE", "NO", "US", "GB", "CH", "IN"]
LOCATIONS = ["processing", "ingress", "storage", "weights", "support_access"]
ENVIRONMENTS = ["experiment", "dev", "staging", "prod"]
TENANCIES = ["shared", "single_tenant", "dedicated"]
CERTIFICATES = ["C5", "ISO27001", "SOC2"]
TODAY = "2026-11-22"
DOCUMENTS = 150


def _some(chance: random.Random, values: list[str], least: int = 0) -> list[str]:
    return sorted(chance.sample(values, chance.randint(least, len(values))))


def _date(chance: random.Random) -> str:
    return f"2026-11-{chance.randint(21, 23)}"


def _class_side(chance: random.Random) -> dict[str, Any]:
    pick = chance.choice
    return {
        "workload": {
            "environment": pick(ENVIRONMENTS),
            "model_version": pick(["v1", "v2"]),
            "profile": {
                "urgency": pick(["interactive", "standard", "batch"]),
                "traffic": pick(["steady", "bursty", "intermittent", "scheduled"]),
                "task": pick(["chat", "rag", "vision"]),
                "memory_bound": pick([True, False]),
            },
            "data": {
                "classification": pick(["public", "internal", "confidential", "restricted", "unheard-of"]),
                "categories": _some(chance, ["personal", "health"]),
                "permitted_countries": _some(chance, COUNTRIES),
                "obligations": _some(chance, ["zero_retention", "redact_prompts"]),
            },
            "resources": {
                "accelerators": _some(chance, ["H100", "H200"]),
                "gpu_count": pick([0, 1, 8]),
                "gpu_memory_gib": pick([0, 80, 160]),
            },
        },
        "tenant": {
            "name": pick(["a", "b"]),
            "foreign_control": pick(["hard", "soft", "off", "unheard-of"]),
            "permitted_seats": _some(chance, COUNTRIES),
            "tenancy": pick(TENANCIES),
            "network": pick(["public", "private"]),
            "account": pick(["ours", "provider"]),
            "certifications": _some(chance, CERTIFICATES),
            "max_retention_days": pick([0, 30]),
            "training_allowed": pick([True, False]),
        },
        "model": {
            "version": "v1",
            "digest": pick(["sha256:a", "sha256:b"]),
            "approved_in": _some(chance, ENVIRONMENTS),
            "permitted_tasks": _some(chance, ["chat", "rag", "vision"]),
            "risk_tier": pick(["minimal", "limited", "high", "unheard-of"]),
            "validation_expires": _date(chance),
            "memory_gib": pick([0, 80, 141]),
        },
        "sla": {
            "ttft_p95_ms": pick([300, 2000]),
            "ttft_p99_ms": pick([900, 5000]),
            "stream_tokens_per_s": pick([10, 40]),
            "availability_ppm": pick([990_000, 999_000]),
            "cold_start_allowed": pick([True, False]),
            "contention_allowed": pick([True, False]),
            "interruption_allowed": pick([True, False]),
        },
        "budget": {"crossed_percent": pick([0, 50, 80, 95, 100])},
        "clock": {"hour_of_week": chance.randint(0, 167), "date": TODAY},
    }


def _pool_side(chance: random.Random) -> dict[str, Any]:
    pick = chance.choice
    return {
        "pool": {
            "kind": pick(["on_prem", "committed", "on_demand", "spot", "serverless", "api"]),
            "account": pick(["ours", "provider"]),
            "network": pick(["public", "private"]),
            "tenancy": pick([*TENANCIES, "unheard-of"]),
            "dedicated_to": _some(chance, ["a", "b", "c"]),
            "locations": {aspect: _some(chance, COUNTRIES)[:3] for aspect in LOCATIONS},
            "region_binding": pick(["enforced", "preferred"]),
            "operator": {"seat": pick(COUNTRIES), "parent_seat": pick(COUNTRIES)},
            "sub_processors": [
                {"name": name, "seat": pick(COUNTRIES), "countries": _some(chance, COUNTRIES)[:2]}
                for name in _some(chance, ["Desk", "Mail"])
            ],
            "certifications": [{"name": name, "expires": _date(chance)} for name in _some(chance, CERTIFICATES)],
            "retention_days": pick([0, 7, 30, 31]),
            "trains_on_data": pick([True, False]),
            "accelerator": {"name": pick(["H100", "H200", "undisclosed"]), "memory_gib": pick([0, 80, 140, 141])},
            "gpu_count": pick([0, 1, 8]),
            "cold_start_ms": pick([0, 20_000]),
            "scale_to_zero": pick([True, False]),
            "contended": pick([True, False]),
            "interruption_per_hour_ppm": pick([0, 500, 501]),
            "availability_ppm": pick([990_000, 999_000]),
            "evidence": {"expires": _date(chance)},
        },
        "serving": {
            "version": pick(["v1", "v2"]),
            "digest": pick(["sha256:a", "sha256:b"]),
            "verified_by": pick(["weights_digest", "server_name"]),
            "memory_gib": pick([0, 80, 160]),
            "ttft_p95_ms": pick([300, 301, 2001]),
            "ttft_p99_ms": pick([900, 901]),
            "stream_tokens_per_s": pick([9, 10, 40]),
        },
    }


def _unordered(value: Any) -> Any:
    """The value with every list sorted: sets arrive as lists, in the engine's own order."""
    if isinstance(value, dict):
        return {key: _unordered(below) for key, below in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return sorted((_unordered(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return value


def _embedded(repository: Path, documents: list[dict[str, Any]]) -> tuple[PolicySet, dict[str, list[Answer]]]:
    async def ask() -> tuple[PolicySet, dict[str, list[Answer]]]:
        engine = EmbeddedEngine()
        try:
            policies = await engine.load(load_policy_tree(repository / "policies"))
            answers = {}
            for name, package in policies.packages.items():
                questions = [
                    Question(name, json.dumps(project(document, package.reads), sort_keys=True).encode())
                    for document in documents
                ]
                answers[name] = await engine.evaluate(policies.digest, questions, 10_000)
            return policies, answers
        finally:
            await engine.close()

    return asyncio.run(ask())


def _opa(repository: Path, opa: Path, folder: Path, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    driver = folder / "driver.rego"
    loop = "results := [r | some item in input.batch; r := data.placement with input as item]"
    driver.write_text(f"package driver\n\n{loop}\n")
    batch = folder / "batch.json"
    batch.write_text(json.dumps({"batch": documents}))
    done = subprocess.run(
        [opa, "eval", "--strict-builtin-errors", "-d", repository / "policies", "-d", driver, "-i", batch,
         "--ignore", "*_test.rego", "data.driver.results"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)["result"][0]["expressions"][0]["value"]
    return results


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    chance = random.Random(20261122)
    return [{**_class_side(chance), **_pool_side(chance)} for _ in range(DOCUMENTS)]


def test_both_engines_say_the_same_of_every_document(
    repository: Path, opa_binary: Path, tmp_path: Path, documents: list[dict[str, Any]]
) -> None:
    policies, answers = _embedded(repository, documents)
    results = _opa(repository, opa_binary, tmp_path, documents)
    fired: set[tuple[str, str]] = set()
    for name in policies.packages:
        for answer, result in zip(answers[name], results, strict=True):
            said = result[name]
            assert answer.error is None
            assert _unordered(answer.deny) == _unordered(said.get("deny", []))
            assert _unordered(answer.warn) == _unordered(said.get("warn", []))
            assert _unordered(answer.obligation) == _unordered(said.get("obligation", []))
            assert answer.prefer == said.get("prefer", 0)
            fired |= {(name, violation["rule"]) for violation in (*answer.deny, *answer.warn)}

    every = {(name, rule) for name, package in policies.packages.items() for rule in package.rules}
    assert fired == every, "the documents must reach every rule, or agreement on them says nothing"
