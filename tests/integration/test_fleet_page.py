"""The reference page of fleet files: it names every key of the models, and its examples load."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

import pytest
from pydantic import BaseModel

from connectors.static import AccountState, FactsDocument, PoolState
from policyd.core import fleet, pool
from policyd.core.budgets import Budget
from policyd.documents import read_yaml
from policyd.revisions.fleet_files import parse_fleet
from policyd.revisions.fleet_import import COLUMNS

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "reference" / "fleet.md").read_text()
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)
MODELS = sorted(
    {
        model
        for module in (fleet, pool)
        for model in vars(module).values()
        if isinstance(model, type) and issubclass(model, pool.Declared)
    }
    | {FactsDocument, PoolState, AccountState},
    key=lambda model: model.__name__,
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_is_described(model: type[BaseModel]) -> None:
    unnamed = [
        name for name in model.model_fields if not re.search(rf"`{name}`|^ *(- )?{name}: |\b{name}: ", PAGE, re.M)
    ]
    assert unnamed == []


def test_every_column_of_every_list_is_described() -> None:
    assert [column for columns in COLUMNS.values() for column in columns if f"`{column}`" not in PAGE] == []


def test_the_examples_load() -> None:
    schema_line, defaults, words, limits, facts = BLOCKS
    assert parse_fleet({PurePosixPath("f.yaml"): words.encode()}).classifications["C2"].value == "confidential"
    assert schema_line.startswith("# yaml-language-server: $schema=")
    first, second = parse_fleet({PurePosixPath("f.yaml"): defaults.encode()}).pools.values()
    assert (first.retention_days, second.retention_days) == (0, None)
    assert (second.operator.name, second.operator.parent_seat) == ("A partner of the region", "US")
    declared = read_yaml(limits.encode(), "fleet.yaml").value
    project = declared["tenants"][0]["projects"][0]
    inner = [*project["budgets"], *project["environment_budgets"]["dev"]]
    for budget in (*declared["budgets"], declared["tenants"][0]["budget"], *inner):
        Budget.model_validate_json(json.dumps(budget))
    document = read_yaml(facts.encode(), "facts.yaml")
    assert document.findings == ()
    FactsDocument.model_validate_json(json.dumps(document.value))
