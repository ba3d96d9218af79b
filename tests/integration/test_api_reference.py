"""The reference page of HTTP says what is: its examples run, its tables are whole, its defaults are the settings'."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from audit.query import FILTERS
from policyd.api.openapi_document import operations
from policyd.settings import Settings
from tests.programs import needs


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / "docs" / "reference" / "http.md").read_text()


@needs("curl")
def test_the_examples_run(api: Any, page: str) -> None:
    examples = re.findall(r"<!-- run status=(\d+) -->\n```sh\n(.*?)```", page, re.DOTALL)
    assert len(examples) == page.count("```sh")
    for status, command in examples:
        told = command.replace("curl ", "curl -s -o /dev/null -w '%{http_code}' ", 1)
        done = subprocess.run(
            ["sh", "-eu", "-c", told], env={"URL": api.address, "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout == status, command


def test_every_route_is_named(api: Any, page: str) -> None:
    described = {
        f"{method.upper()} {path}"
        for path, methods in api.client.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    assert set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", page, re.MULTILINE)) == described


def test_every_filter_is_named(page: str) -> None:
    table = page[page.index("| filter | matches |") : page.index("## Explanations")]
    assert set(re.findall(r"`([a-z_]+)`(?=[,` |].*\|)", table)) >= set(FILTERS)


def test_the_defaults_are_those_of_the_settings(page: str) -> None:
    named = re.findall(r"\| `([a-z_]+)\.([a-z_]+)` \| (\d+) \|", page)
    assert len(named) >= 8
    for section, name, default in named:
        assert getattr(getattr(Settings(), section), name) == int(default)


def test_the_committed_description_is_what_the_server_answers(api: Any, repository: Path) -> None:
    page = runpy.run_path(str(repository / "scripts" / "openapi"))["page"]
    committed = (repository / "docs" / "reference" / "openapi.json").read_text()
    served = page(api.client.get("/openapi.json").json())
    assert json.loads(committed) == json.loads(served), "run scripts/openapi > docs/reference/openapi.json"
    assert committed == served


def test_every_body_has_an_example_that_its_schema_accepts(api: Any) -> None:
    document = api.client.get("/openapi.json").json()
    asked = 0
    for operation in operations(document):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for media_type, content in (pair for body in bodies for pair in body.get("content", {}).items()):
            if "json" not in media_type:
                continue
            schema = {**content["schema"], "components": document["components"]}
            examples = [content["example"]] if "example" in content else [
                found["value"] for found in content.get("examples", {}).values()
            ]  # fmt: skip
            assert examples, f"{operation['operationId']}: {media_type} has no example"
            for example in examples:
                jsonschema.validate(example, schema)
                asked += 1
    assert asked > 50


def test_the_example_of_a_problem_has_the_status_that_it_stands_under(api: Any) -> None:
    for operation in operations(api.client.get("/openapi.json").json()):
        for status, answer in operation["responses"].items():
            problem = answer.get("content", {}).get("application/problem+json")
            if problem is not None:
                assert str(problem["example"]["status"]) == status, operation["operationId"]


def test_the_request_of_the_description_takes_no_null(api: Any) -> None:
    schemas = api.client.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["WorkloadRequest"]["properties"]["project"]["type"] == "string"
    for name, schema in schemas.items():
        if name.endswith("Request"):
            assert '"null"' not in json.dumps(schema), name
            assert None not in [field.get("default", "") for field in schema["properties"].values()]


def test_the_labels_of_the_description_take_no_other_keys(api: Any) -> None:
    labels = api.client.get("/openapi.json").json()["components"]["schemas"]["WorkloadRequest"]["properties"]["labels"]
    assert labels["additionalProperties"] is False


def test_what_the_description_shows_as_a_request_is_decided(api: Any) -> None:
    operation = api.client.get("/openapi.json").json()["paths"]["/v1/decisions"]["post"]
    shown = operation["requestBody"]["content"]["application/json"]["example"]
    assert api.client.post("/v1/decisions", json=shown).status_code == 200
