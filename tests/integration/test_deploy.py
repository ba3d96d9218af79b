"""What ``deploy/`` asks Prometheus is there: every metric and label of every query, at a server with traffic."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.promql import names_of

BY_PROMETHEUS = {"instance", "job"}
"""Labels that the scraper adds."""
RULES = Path("deploy/prometheus/policyd-alerts.yaml")
DASHBOARD = Path("deploy/grafana/policyd.json")


def dashboard(repository: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((repository / DASHBOARD).read_text())
    return found


def rules(repository: Path) -> list[dict[str, Any]]:
    document = yaml.safe_load((repository / RULES).read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def queries(repository: Path) -> dict[str, str]:
    """Every query of the dashboard and of the rules, by where it stands."""
    board = dashboard(repository)
    found = {
        f"panel {panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }
    found |= {f"annotation {one['name']}": one["expr"] for one in board["annotations"]["list"]}
    return found | {f"alert {rule['alert']}": rule["expr"] for rule in rules(repository)}


@pytest.fixture
def exposed(api: Any, bank_chat: dict[str, Any]) -> Mapping[str, list[Mapping[str, str]]]:
    """The labels of every sample of a real server, by name, after an allow, a deny and an error."""
    api.client.post("/v1/decisions", json=bank_chat)
    api.client.post("/v1/decisions", json={"workload": {"tenant": "nobody", "model": "x"}})
    found: dict[str, list[Mapping[str, str]]] = {}
    for family in text_string_to_metric_families(api.client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def faults(query: str, exposed: Mapping[str, list[Mapping[str, str]]]) -> list[str]:
    """Every name of a query that no sample has."""
    names = names_of(query)
    found = [f"{name} is not exposed" for name, _ in names.matched if name not in exposed]
    known = set(BY_PROMETHEUS)
    for name, matched in names.matched:
        labels = {label for sample in exposed.get(name, []) for label in sample}
        known |= labels
        found += [f"{name} has no label {label}" for label in matched if label not in labels | BY_PROMETHEUS]
        found += [
            f"{name} never has {label}={value!r}"
            for label, value in matched.items()
            if value and label not in BY_PROMETHEUS and not any(s.get(label) == value for s in exposed.get(name, []))
        ]
    return found + [f"nothing has the label {label}" for label in sorted(names.grouped - known)]


def test_every_name_of_every_query_is_exposed(repository: Path, exposed: Mapping[str, list[Mapping[str, str]]]) -> None:
    wrong = {where: faults(query, exposed) for where, query in queries(repository).items()}
    assert {where: found for where, found in wrong.items() if found} == {}
    assert len(wrong) > 30


def test_legends_and_messages_name_labels_that_their_query_keeps(repository: Path) -> None:
    for panel in dashboard(repository)["panels"]:
        for target in panel["targets"]:
            names = names_of(target["expr"])
            kept = names.grouped | BY_PROMETHEUS | {"policy_digest", "fleet_digest"}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, panel["title"]
    for rule in rules(repository):
        kept = names_of(rule["expr"]).grouped | BY_PROMETHEUS
        assert set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))) <= kept, rule["alert"]


def test_the_dashboard_is_whole_and_small(repository: Path) -> None:
    panels = dashboard(repository)["panels"]
    assert 8 <= len(panels) <= 12
    assert all(panel["title"] and panel["description"] for panel in panels)
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_every_alert_says_what_to_do(repository: Path) -> None:
    page = (repository / "docs" / "how-to" / "observe.md").read_text()
    listed = re.findall(r"^\| `(Policyd\w+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(rule["alert"] for rule in rules(repository))
    for rule in rules(repository):
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_prometheus_itself_takes_the_rules(repository: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool, which comes with Prometheus")
    done = subprocess.run([promtool, "check", "rules", str(repository / RULES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("policyd_surprise_total", "policyd_surprise_total is not exposed"),
        ('rate(policyd_decisions_total{color="red"}[5m])', "policyd_decisions_total has no label color"),
        ('policyd_decisions_total{outcome="maybe"}', "policyd_decisions_total never has outcome='maybe'"),
        ("sum by (color) (policyd_commit_queue)", "nothing has the label color"),
    ],
)
def test_a_wrong_name_is_found(exposed: Mapping[str, list[Mapping[str, str]]], query: str, fault: str) -> None:
    assert fault in faults(query, exposed)


@pytest.mark.parametrize("query", ["rat(policyd_commit_queue[5m])", "rate(policyd_commit_queue[5 apples])", "a ; b"])
def test_what_is_no_query_is_refused(query: str) -> None:
    with pytest.raises(ValueError, match=r"not known|is none|no PromQL"):
        names_of(query)


def test_the_names_of_a_query() -> None:
    found = names_of('sum by (le) (rate(a_bucket{x="1", y=~"2|3"}[5m])) / on (z) group_left b offset 5m > bool 0.5')
    assert found.matched == [("a_bucket", {"x": "1", "y": ""}), ("b", {})]
    assert found.grouped == {"le", "z"}
