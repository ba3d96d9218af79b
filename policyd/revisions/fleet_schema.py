"""JSON Schemas (draft 2020-12) of fleet files and of workload files, for editors.

Rules: they are made from the models that check the files, so they cannot drift (a test compares the files in
``examples/schemas``); they accept whatever the loader accepts, and a part of what it refuses: what one file cannot
show, such as dangling names or a fact that ``pool_defaults`` supplies, only the loader judges.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from policyd.core.fleet import FleetDocument
from policyd.core.workload import DecisionRequest
from policyd.revisions.fleet_files import POOL_DEFAULTS

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"

_MONEY: Final = {
    "anyOf": [{"type": "string", "pattern": r"^[0-9]{1,18}(\.[0-9]{1,18})?$"}, {"type": "integer", "minimum": 0}],
    "description": "Money as a quoted decimal, for example '88.49', or a whole number.",
}
_MERGED: Final = ("Price", "Commitment")
"""Mappings of a pool that a pool and ``pool_defaults`` may each state in part."""


def fleet_schema() -> dict[str, Any]:
    """The schema of one file of a fleet folder."""
    schema = _schema_of(FleetDocument, "A file of a policyd fleet")
    definitions = schema["$defs"]
    pool = definitions["Pool"]
    for name in _MERGED:
        definitions[f"{name}Part"] = {key: value for key, value in definitions[name].items() if key != "required"}
        pool["properties"][name.lower()] = {"anyOf": [{"$ref": f"#/$defs/{name}Part"}, {"type": "null"}]}
    # `kind`, `group` and the like may stand in pool_defaults, which an editor does not merge.
    pool["required"] = ["id"]
    part = {key: value for key, value in pool.items() if key != "required"}
    part["properties"] = {key: value for key, value in pool["properties"].items() if key != "id"}
    part["description"] = "Facts that every pool of this file has, unless the pool itself says otherwise."
    definitions["PoolDefaults"] = part
    schema["properties"][POOL_DEFAULTS] = {"$ref": "#/$defs/PoolDefaults"}
    return schema


def workload_schema() -> dict[str, Any]:
    """The schema of a workload file: the body of ``POST /v1/decisions``."""
    return _schema_of(DecisionRequest, "A workload that asks policyd where it may run")


def _schema_of(model: type[BaseModel], title: str) -> dict[str, Any]:
    schema: dict[str, Any] = _exact(model.model_json_schema(mode="validation"))
    return {"$schema": DRAFT, **schema, "title": title}


def _exact(node: Any) -> Any:
    """Decimals are written as money, not as floats, and the names that pydantic gives to fields say nothing new."""
    if isinstance(node, list):
        return [_exact(item) for item in node]
    if not isinstance(node, dict):
        return node
    options = node.get("anyOf", ())
    if any(option.get("type") == "number" for option in options):
        rest = [option for option in options if option.get("type") == "null"]
        return {**_MONEY, "anyOf": [*_MONEY["anyOf"], *rest]}
    return {key: _exact(value) for key, value in node.items() if not (key == "title" and isinstance(value, str))}
