"""The JSON Schemas that editors use: in step with the models, accepting the examples, refusing a typing error."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from policyd.documents import read_yaml

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"
KINDS = {
    "fleet": sorted((EXAMPLES / "fleet").glob("*.yaml")),
    "workload": sorted((EXAMPLES / "workloads").glob("*.yaml")),
    "facts": [EXAMPLES / "facts.yaml"],
}


def schema_of(kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((EXAMPLES / "schemas" / f"{kind}.schema.json").read_text())
    return schema


def test_the_files_are_what_the_models_say() -> None:
    made: dict[str, str] = runpy.run_path(str(ROOT / "scripts" / "schemas"))["schemas"]()
    written = {path.name: path.read_text() for path in (EXAMPLES / "schemas").glob("*.json")}
    assert written == made, "a model has changed: run scripts/schemas"


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_is_a_schema_and_accepts_every_example(kind: str) -> None:
    schema = schema_of(kind)
    Draft202012Validator.check_schema(schema)
    assert KINDS[kind]
    for path in KINDS[kind]:
        value = read_yaml(path.read_bytes(), str(path)).value
        assert [error.message for error in Draft202012Validator(schema).iter_errors(value)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_names_its_schema(kind: str) -> None:
    for path in KINDS[kind]:
        first = path.read_text().splitlines()[0]
        assert first.startswith("# yaml-language-server: $schema=")
        named = (path.parent / first.partition("=")[2]).resolve()
        assert named == EXAMPLES / "schemas" / f"{kind}.schema.json"


@pytest.mark.parametrize(
    "value",
    [
        {"pool": []},
        {"pools": [{"kind": "spot"}]},
        {"pools": [{"id": "a", "tenency": "shared"}]},
        {"pools": [{"id": "a", "price": {"amount": 88.49}}]},
        {"pool_defaults": {"id": "a"}},
        {"pool_defaults": {"kind": "spots"}},
    ],
)
def test_the_fleet_schema_refuses_what_an_editor_should_mark(value: dict[str, Any]) -> None:
    assert not Draft202012Validator(schema_of("fleet")).is_valid(value)


def test_the_fleet_schema_lets_pools_lean_on_pool_defaults() -> None:
    value = {
        "pool_defaults": {"kind": "spot", "price": {"status": "list"}},
        "pools": [{"id": "a", "price": {"amount": "1.5"}}],
    }
    assert Draft202012Validator(schema_of("fleet")).is_valid(value)
